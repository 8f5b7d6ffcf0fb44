"""The protocol: it changes with all that a number depends on."""

import pytest

from vqjax.evaluation import protocol


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name in ("quantizers.py", "features/resnet.py", "reporting/page.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(protocol, "_ROOT", tmp_path)
    monkeypatch.setattr(protocol, "source_digest", protocol.source_digest.__wrapped__)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "matters"),
    [
        ("quantizers.py", (True, False)),
        ("features/resnet.py", (True, True)),
        ("reporting/page.py", (False, False)),
    ],
)
def test_code_that_makes_numbers_is_part_of_it(package, file, matters):
    def code():
        return [protocol.surroundings(*parts)["code"] for parts in ((), ("features",))]

    before = code()
    assert code() == before
    (package / file).write_text("x = 2\n")
    assert tuple(a != b for a, b in zip(before, code(), strict=True)) == matters


def test_the_order_of_keys_does_not_matter():
    assert protocol.protocol_hash({"a": 1, "b": [2]}) == protocol.protocol_hash({"b": [2], "a": 1})
    assert protocol.protocol_hash({"a": 1}) != protocol.protocol_hash({"a": 2})
