"""Files are whole or not there; one process at a time."""

import threading

import pytest

from vqjax.files import locked, replacing, write_whole


def test_what_goes_wrong_leaves_what_was_there(tmp_path):
    file = tmp_path / "folder" / "a.txt"
    write_whole(file, "first")
    with pytest.raises(KeyboardInterrupt), replacing(file) as partial:
        partial.write_text("sec")
        raise KeyboardInterrupt
    assert file.read_text() == "first"
    assert list(file.parent.iterdir()) == [file]
    write_whole(file, "ünd".encode())
    assert file.read_text(encoding="utf-8") == "ünd"


def test_a_lock_is_waited_for(tmp_path, caplog):
    caplog.set_level("INFO")
    order, waiting = [], threading.Event()

    def second():
        waiting.set()
        with locked(tmp_path / "x" / ".lock"):
            order.append("second")

    with locked(tmp_path / "x" / ".lock"):
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait()
        thread.join(timeout=0.2)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert "waiting for it" in caplog.text
