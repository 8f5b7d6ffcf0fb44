"""Files are whole or not there; one process at a time; the cache folder."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vqjax.files import cache_folder, locked, replacing, write_whole


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
    assert caplog.text.count("waiting for it") == 1


def test_a_killed_holder_holds_up_nobody(tmp_path, caplog):
    lock = tmp_path / ".lock"
    program = f"""
import pathlib, time
from vqjax.files import locked
with locked(pathlib.Path({str(lock)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        caplog.set_level("INFO")
        entered = threading.Event()

        def wait():
            with locked(lock):
                entered.set()

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        assert not entered.wait(0.2)
    finally:
        holder.kill()
        holder.communicate()
    assert entered.wait(10)
    assert caplog.text.count("waiting for it") == 1


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("features") == tmp_path / "vqjax" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("features") == tmp_path / "home" / ".cache" / "vqjax" / "features"
