"""Folders of images: splits, classes, captions, and what is wrong is named."""

import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vqjax.data import BrokenImageError, build_source
from vqjax.errors import InputError


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, 0, 0)).save(path)


def source(path, split="train", **fields):
    return build_source(ConfigDict({"name": "folder", "path": str(path), **fields}), split, 32)


def names(folder):
    return [folder[index]["name"] for index in range(len(folder))]


@pytest.fixture
def flat(tmp_path):
    for index in range(20):
        write(tmp_path / f"{index:03}.png", index)
    return tmp_path


@pytest.fixture
def tree(tmp_path):
    for split in ("train", "val"):
        for label, kind in enumerate(["bird", "cat", "dog/small"]):
            for index in range(3):
                if (split, kind) != ("val", "cat"):
                    write(tmp_path / split / kind / f"{index}.png", label)
    return tmp_path


def test_example_holds_native_pixels_name_and_class(flat):
    folder = source(flat, train_range=":10", validation_range="10:")
    example = folder[3]
    assert example["image"].shape == (4, 6, 3)
    assert example["image"][0, 0, 0] == 3
    assert (example["name"], example["label"], example["captions"]) == ("003.png", 0, ())
    assert folder.class_names == (".",)


def test_classes_are_sub_folders_and_agree_between_splits(tree):
    fields = {"train_folder": "train", "validation_folder": "val"}
    train, validation = (source(tree, split, **fields) for split in ("train", "validation"))
    assert train.class_names == validation.class_names == ("bird", "cat", "dog/small")
    assert (len(train), len(validation)) == (9, 6)
    for folder in (train, validation):
        for index in range(len(folder)):
            example = folder[index]
            assert example["label"] == example["image"][0, 0, 0]
    assert names(validation)[0] == "val/bird/0.png"


def test_ranges_of_the_sorted_names(flat):
    fields = {"train_range": "0:15", "validation_range": "-3:"}
    assert names(source(flat, **fields)) == [f"{index:03}.png" for index in range(15)]
    assert names(source(flat, "validation", **fields)) == ["017.png", "018.png", "019.png"]


def test_lists_keep_their_order(flat):
    (flat / "a.txt").write_text("007.png\n\n002.png\n")
    (flat / "b.txt").write_text("001.png\n")
    fields = {"train_list": "a.txt", "validation_list": str(flat / "b.txt")}
    assert names(source(flat, **fields)) == ["007.png", "002.png"]
    assert names(source(flat, "validation", **fields)) == ["001.png"]


def test_hash_split_is_disjoint_complete_and_stays_when_images_are_added(flat):
    fields = {"validation_fraction": 0.3}
    train, held = (set(names(source(flat, split, **fields))) for split in ("train", "validation"))
    assert not train & held
    assert len(train | held) == 20
    for index in range(20, 40):
        write(flat / f"{index:03}.png")
    assert train < set(names(source(flat, **fields)))


def test_copies_of_a_file_lie_on_one_side_of_a_split_by_content(flat):
    for index in range(20):
        shutil.copy(flat / f"{index:03}.png", flat / f"copy of {index:03}.png")

    def split(by_content):
        fields = {"validation_fraction": 0.4, "split_by_content": by_content}
        return [set(names(source(flat, side, **fields))) for side in ("train", "validation")]

    def copies_are_with_theirs(side):
        copies = {name for name in side if name.startswith("copy of ")}
        return {f"copy of {name}" for name in side - copies} == copies

    train, held = split(by_content=True)
    assert len(train) > 5 and len(held) > 5 and not train & held and len(train | held) == 40
    assert copies_are_with_theirs(train) and copies_are_with_theirs(held)
    assert not copies_are_with_theirs(split(by_content=False)[0])
    write(flat / "another.png", 50)
    assert train <= split(by_content=True)[0]


def test_only_images_count_and_hidden_files_do_not(flat):
    (flat / "readme.txt").write_text("no image")
    (flat / "._001.png").write_bytes(b"finder")
    write(flat / "UPPER.PNG")
    everything = names(source(flat, validation_range=":", train_range=":"))
    assert len(everything) == 21
    assert "UPPER.PNG" in everything


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_all_captions_of_a_name_are_kept_in_their_order(flat, kind):
    entries = [("003.png", "a red dot"), ("004.png", "tab\tinside"), ("003.png", "another")]
    lines = {
        "tsv": [f"{name}\t{caption}" for name, caption in entries],
        "jsonl": [json.dumps({"name": name, "caption": caption}) for name, caption in entries],
    }
    (flat / f"captions.{kind}").write_text("\n".join(lines[kind]))
    folder = source(flat, train_range=":", validation_range=":", captions=f"captions.{kind}")
    captions = [folder[index]["captions"] for index in range(6)]
    assert captions == [(), (), (), ("a red dot", "another"), ("tab\tinside",), ()]
    assert [folder.captions_of(index) for index in range(6)] == captions


def test_broken_file_is_named(flat):
    (flat / "005.png").write_bytes((flat / "005.png").read_bytes()[:40])
    (flat / "006.png").write_text("text")
    folder = source(flat, train_range=":", validation_range=":")
    (flat / "007.png").unlink()
    for index in (5, 6, 7):
        with pytest.raises(BrokenImageError, match=str(flat / f"00{index}.png")):
            folder[index]
    assert folder[8]["label"] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "/nowhere/at/all"}, "/nowhere/at/all is not a folder"),
        ({"train_folder": "other"}, "other is not a folder"),
        ({"validation_range": "5:"}, "train_range: not set"),
        ({"train_range": "5-9"}, "write it like 0:60000"),
        ({"train_range": "50:60"}, "no train images"),
        ({"train_range": ":", "train_list": "a.txt"}, "already given by list"),
        ({"train_range": ":", "split_by_content": True}, "split_by_content: the split is already"),
        ({"train_list": "a.txt"}, "a.txt cannot be read"),
        ({"captions": "no.tsv"}, "no.tsv cannot be read"),
        ({"trian_range": ":"}, "did you mean 'train_range'"),
        ({"resolution": 3}, "no such field"),
        ({"name": "foldr"}, "did you mean 'folder'"),
        ({"name": None}, "folder, openmoji, tfds"),
    ],
)
def test_bad_fields_are_named(flat, fields, message):
    with pytest.raises(InputError, match=r"config\.data\.source") as caught:
        build_source(ConfigDict({"name": "folder", "path": str(flat), **fields}), "train", 32)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_list_and_caption_lines_are_named(flat):
    (flat / "a.txt").write_text("001.png\n999.png\n")
    with pytest.raises(InputError, match=r"entry 2, '999\.png'"):
        source(flat, train_list="a.txt")
    (flat / "c.tsv").write_text("001.png\tfine\nno tab\n")
    with pytest.raises(InputError, match=r"line 2 of c\.tsv"):
        source(flat, captions="c.tsv")
    (flat / "d.tsv").write_text("elsewhere/001.png\tfine\n")
    with pytest.raises(InputError, match="names none of the images"):
        source(flat, captions="d.tsv")


def test_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} has no images"):
        source(tmp_path)


def test_labels_are_plain_integers_in_range(tree):
    folder = source(tree / "train", train_range=":", validation_range=":")
    labels = [folder[index]["label"] for index in range(len(folder))]
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert len(folder.class_names) == 3
