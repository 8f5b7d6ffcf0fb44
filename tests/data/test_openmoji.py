"""The default data set: rendered once, split by skin-tone family, named and classed."""

import hashlib
import pickle
import threading
import time
from unittest import mock

import numpy as np
import pytest
from ml_collections import ConfigDict

from vqjax.data import build_source, rendering
from vqjax.data.openmoji import all_emoji
from vqjax.data.rendering import open_rendered, render_svg
from vqjax.errors import InputError

RESOLUTION = 16
SVGS = [emoji.svg for emoji in all_emoji()[::500]]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def stamp(svg, resolution):
    """An image that tells one drawing from another, in no time."""
    digest = hashlib.sha256(svg.stem.encode()).digest()[:3]
    return np.broadcast_to(np.frombuffer(digest, np.uint8), (resolution, resolution, 3))


@pytest.fixture(scope="module")
def splits(cache_dir):
    config = ConfigDict({"name": "openmoji", "cache_dir": str(cache_dir)})
    with mock.patch.object(rendering, "render_svg", stamp):
        return {split: build_source(config, split, RESOLUTION) for split in ("train", "validation")}


@pytest.fixture(scope="module")
def by_name():
    return {emoji.svg.stem: emoji for emoji in all_emoji()}


def names(source):
    return {source[index]["name"] for index in range(len(source))}


def test_splits_share_out_all_emoji(splits):
    train, validation = names(splits["train"]), names(splits["validation"])
    assert len(train) + len(validation) == len(train | validation) == len(all_emoji())
    assert 0.08 < len(validation) / len(all_emoji()) < 0.12


def test_skin_tones_of_an_emoji_are_on_one_side(splits):
    tones = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF", "FE0F"}
    sides = {}
    for side, source in splits.items():
        for name in names(source):
            bare = tuple(part for part in name.split("-") if part not in tones)
            if bare:  # the five swatches themselves are no variants of anything
                sides.setdefault(bare, set()).add(side)
    assert all(len(found) == 1 for found in sides.values())


def shared(splits, content):
    """How many emoji have a content, such as their file, that another one has too; their sides."""
    sides = {}
    for side, source in splits.items():
        for name in names(source):
            sides.setdefault(content(name), []).append(side)
    groups = [found for found in sides.values() if len(found) > 1]
    return sum(map(len, groups)), [set(found) for found in groups]


def test_emoji_of_equal_files_are_on_one_side(splits, by_name):
    count, sides = shared(splits, lambda name: by_name[name].svg.read_bytes())
    assert count > 300
    assert all(len(found) == 1 for found in sides)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [16, 48])
def test_no_held_out_picture_is_one_of_the_training_set(splits, by_name, resolution):
    """Also where the files differ, and where only pictures of another size do."""
    count, sides = shared(splits, lambda name: render_svg(by_name[name].svg, resolution).tobytes())
    assert count > 400
    assert all(len(found) == 1 for found in sides)


@pytest.mark.parametrize(
    ("one_code", "by_person"),
    [
        ("1F46B", "1F469-1F3FB-200D-1F91D-200D-1F468-1F3FE"),  # woman and man holding hands
        ("1F91D", "1FAF1-1F3FB-200D-1FAF2-1F3FF"),  # handshake
        ("1F48F", "1F9D1-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F9D1-1F3FC"),  # kiss
        ("1F46F-1F3FF-200D-2642-FE0F", "1F468-1F3FB-200D-1F430-200D-1F468-1F3FC"),  # bunny ears
        ("1F93C-200D-2640-FE0F", "1F469-1F3FC-200D-1FAEF-200D-1F469-1F3FB"),  # wrestling
    ],
)
def test_pairs_in_two_tones_belong_to_the_family_of_the_single_code(by_name, one_code, by_person):
    assert by_name[one_code].family == by_name[by_person].family


def test_fingerprint_tells_which_emoji_a_split_has(splits):
    source = splits["validation"]
    fingerprint = source.fingerprint
    with mock.patch.object(source, "_indices", source._indices[1:]):
        assert source.fingerprint != fingerprint
    assert source.fingerprint == fingerprint != splits["train"].fingerprint


def test_captions_and_classes(by_name, splits):
    assert by_name["1F3C6"].caption == "trophy"
    assert by_name["1F3C6"].category == "Activities"
    assert by_name["1F1E7-1F1EA"].caption == "belgium flag"
    assert by_name["0023-FE0F-20E3"].category == "Symbols"
    assert by_name["1F385-1F3FD"].caption == "father christmas, medium skin tone"
    assert by_name["1FAF1-1F3FB-200D-1FAF2-1F3FF"].caption == "handshake, light and dark skin tone"
    assert by_name["E041"].category == "extras"
    assert by_name["2605"].caption == "black star"
    assert all(emoji.caption and emoji.caption == emoji.caption.lower() for emoji in all_emoji())
    for source in splits.values():
        assert len(source.class_names) == 11
        for index in range(0, len(source), 97):
            example = source[index]
            emoji = by_name[example["name"]]
            assert source.class_names[example["label"]] == emoji.category
            assert example["captions"] == source.captions_of(index) == (emoji.caption,)


def test_rows_of_the_cache_are_the_emoji_that_they_say(splits, by_name):
    source = splits["validation"]
    for index in (0, 200, len(source) - 1):
        example = source[index]
        svg = by_name[example["name"]].svg
        np.testing.assert_array_equal(example["image"], stamp(svg, RESOLUTION))


def test_drawings_are_antialiased_and_centred_on_white(by_name):
    face = render_svg(by_name["1F600"].svg, 72).astype(int)
    ink = face.sum(-1) < 3 * 250
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert (face[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert abs(rows.mean() - 35.5) < 1
    assert abs(columns.mean() - 35.5) < 1
    assert len(np.unique(face[..., 0])) > 50


def test_pickled_source_holds_no_pixels_and_reads_the_same(splits):
    source = splits["train"]
    pickled = pickle.dumps(source)
    assert len(pickled) < 100_000
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(copy[7]["image"], source[7]["image"])


def test_cache_is_used_again(tmp_path, monkeypatch):
    first = open_rendered(SVGS, 16, tmp_path / "x.npy")
    assert isinstance(first, np.memmap)
    monkeypatch.setattr(rendering, "render_svg", None)
    np.testing.assert_array_equal(open_rendered(SVGS, 16, tmp_path / "x.npy"), first)


@pytest.mark.parametrize("damage", ["cut", "garbage", "shape", "empty"])
def test_damaged_cache_is_rendered_again(tmp_path, damage):
    cache = tmp_path / "x.npy"
    good = np.array(open_rendered(SVGS, 16, cache))
    if damage == "shape":
        np.save(cache, good[:-1])
    else:
        data = cache.read_bytes()
        bad = {"cut": data[:-1], "garbage": b"no array", "empty": b""}
        cache.write_bytes(bad[damage])
    np.testing.assert_array_equal(open_rendered(SVGS, 16, cache), good)


def test_an_interrupted_rendering_leaves_no_cache_and_the_next_one_succeeds(tmp_path, monkeypatch):
    cache = tmp_path / "x.npy"

    def killed(svg, resolution):
        if svg == SVGS[3]:
            raise KeyboardInterrupt
        return render_svg(svg, resolution)

    with monkeypatch.context() as patch:
        patch.setattr(rendering, "render_svg", killed)
        with pytest.raises(KeyboardInterrupt):
            open_rendered(SVGS, 16, cache)
    assert not cache.exists()
    images = open_rendered(SVGS, 16, cache)
    np.testing.assert_array_equal(images[3], render_svg(SVGS[3], 16))
    assert not list(tmp_path.glob("*.partial"))


def test_two_that_start_together_render_once(tmp_path, monkeypatch):
    renderings = []

    def slow(svg, resolution):
        renderings.append(svg)
        time.sleep(0.01)
        return render_svg(svg, resolution)

    monkeypatch.setattr(rendering, "render_svg", slow)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(open_rendered(SVGS, 16, tmp_path / "x.npy")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(renderings) == len(SVGS)


@pytest.mark.slow
def test_parallel_rendering_equals_serial(tmp_path):
    images = open_rendered(SVGS, rendering._PARALLEL_FROM, tmp_path / "x.npy")
    for image, svg in zip(images, SVGS, strict=True):
        np.testing.assert_array_equal(image, render_svg(svg, rendering._PARALLEL_FROM))


def test_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cache_dir"):
        open_rendered(SVGS, 16, tmp_path / "file" / "x.npy")
    full = rendering.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(rendering.shutil, "disk_usage", lambda path: full)
    with pytest.raises(InputError, match="GB free"):
        open_rendered(SVGS, 16, tmp_path / "x.npy")


@pytest.mark.parametrize("unset", ["", None])
def test_default_cache_is_in_the_users_cache_folder(
    tmp_path, monkeypatch, cache_dir, splits, unset
):
    folder = tmp_path / "vqjax" / "openmoji"
    folder.mkdir(parents=True)
    for rendered in cache_dir.glob("*.npy"):
        (folder / rendered.name).symlink_to(rendered)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rendering, "render_svg", None)
    source = build_source(ConfigDict({"name": "openmoji", "cache_dir": unset}), "train", RESOLUTION)
    assert source[0]["image"].max() > 0


def test_names_alone_need_no_drawings(tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "render_svg", None)
    config = ConfigDict({"name": "openmoji", "cache_dir": str(tmp_path)})
    source = build_source(config, "train", RESOLUTION, prepare=False)
    assert len(source.class_names) == 11 and source.captions_of(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resolution", [8, 4096])
def test_resolution_out_of_range_is_refused(tmp_path, resolution):
    config = ConfigDict({"name": "openmoji", "cache_dir": str(tmp_path)})
    with pytest.raises(InputError, match="16 and 2048"):
        build_source(config, "train", resolution)
