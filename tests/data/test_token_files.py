"""Tokens on disk: what is written comes back, whole shards only, by any number of processes."""

import json

import numpy as np
import pytest
import tiny

from vqjax.data.token_files import FILE, TokenSetRecord, TokensOnDisk, missing_shards, write_shards
from vqjax.data.token_sets import TokenForm
from vqjax.errors import InputError

DENSE = TokenForm(2, 4, 32, (2, 2), "dense")
SPARSE = TokenForm(3, 2, 70_000, (2, 2), "sparse")


def images_of(form, count=10):
    rng = np.random.default_rng(0)
    shape = (count, form.views, form.per_image)
    arrays = {name: rng.integers(0, form.num_codes, shape) for name in form.arrays}
    return [
        {name: array[i] for name, array in arrays.items()}
        | {"label": i % 3, "captions": ("one\nline", "ein Käfer")[: i % 3]}
        for i in range(count)
    ]


def record_of(form):
    return TokenSetRecord({"data": {"images": 10}}, 10, 0, 4, form)


def write(folder, form, index=0, count=1, images=None):
    """The shards that are missing, by one of some processes; names of those that it wrote."""
    record = record_of(form)
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(record.to_json())
    shards = missing_shards(folder, record.shards, index, count)
    images = images or images_of(form)
    theirs = (images[i] for shard in shards for i in shard.images)
    return [shard.name for shard in write_shards(folder, form, shards, theirs)]


def assert_same(image, wanted):
    assert image.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(image[name], value)


@pytest.mark.parametrize("form", [DENSE, SPARSE])
def test_what_is_written_comes_back(form, tmp_path):
    assert len(write(tmp_path, form)) == 3
    tokens = TokensOnDisk(tmp_path, "tokens")
    assert tokens.record == record_of(form)
    assert len(tokens) == 10
    for i in (9, 0, 4, 3):
        assert_same(tokens[i], images_of(form)[i])


def test_two_processes_write_what_one_writes(tmp_path):
    one = write(tmp_path / "one", DENSE)
    first = write(tmp_path / "two", DENSE, 0, 2)
    with pytest.raises(InputError, match=r"1 of 3 shards are not there, such as tokens-00001-of"):
        TokensOnDisk(tmp_path / "two", "tokens")
    second = write(tmp_path / "two", DENSE, 1, 2)
    assert sorted(first + second) == one
    assert tiny.contents(tmp_path / "two") == tiny.contents(tmp_path / "one")


class Killed(BaseException): ...


def test_killed_at_any_image_it_goes_on_with_whole_shards(tmp_path):
    write(tmp_path / "unbroken", DENSE)
    unbroken = tiny.contents(tmp_path / "unbroken")

    class Breaks(list):
        def __getitem__(self, i):
            if i == 6:
                raise Killed
            return super().__getitem__(i)

    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        write(folder, DENSE, images=Breaks(images_of(DENSE)))
    # As SIGKILL leaves it, too: a part of the shard under another name.
    (folder / ".tokens-00001-of-00003.array_record.partial").write_bytes(b"part")
    shards = {path.name for path in folder.glob("tokens-*")}
    assert shards == {"tokens-00000-of-00003.array_record"}
    assert write(folder, DENSE) == [f"tokens-0000{i}-of-00003.array_record" for i in (1, 2)]
    assert tiny.contents(folder) == unbroken


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^here: there is no tokens.json in that folder: write"):
        TokensOnDisk(tmp_path, "here")
    write(tmp_path, DENSE)
    shard = tmp_path / "tokens-00002-of-00003.array_record"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"^here: tokens-00002-of-00003.array_record is damaged"):
        TokensOnDisk(tmp_path, "here")
    file = tmp_path / FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match=r"^here: tokens.json there is not that of .*version"):
        TokensOnDisk(tmp_path, "here")
