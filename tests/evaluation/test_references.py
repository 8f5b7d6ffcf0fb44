"""What samples are compared with: folders and files that fit, computed once."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network
from PIL import ExifTags, Image

from vqjax.errors import InputError
from vqjax.evaluation import npz, references
from vqjax.evaluation.metrics.frechet import fit
from vqjax.evaluation.references import ImageFolder, open_images, padded, read_reference


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    for i, image in enumerate(pixels):
        file = tmp_path / "images" / f"sub{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return tmp_path / "images", pixels[[0, 2, 4, 1, 3]]


def measure(images):
    measure.calls += 1
    features, logits = tiny_network.build()(jnp.asarray(images / np.float32(127.5) - 1))
    return {"features": features, "logits": logits}


def test_a_folder_is_read_in_the_order_of_its_names(folder):
    path, pixels = folder
    images = ImageFolder(path)
    assert (images.count, images.size) == (5, (8, 8))
    for start in (0, 1):
        batches = list(padded(images.batches(3, start), 3))
        assert all(len(b["image"]) == 3 for b in batches)
        valid = np.concatenate([b["image"][b["valid"]] for b in batches])
        np.testing.assert_array_equal(valid, pixels[3 * start :])


@pytest.mark.parametrize("as_npz", [False, True])
def test_features_are_those_of_the_images_and_computed_once(folder, tmp_path, monkeypatch, as_npz):
    path, pixels = folder
    if as_npz:
        path = tmp_path / "a.npz"
        np.savez(path, pixels)
    measure.calls = 0
    first = read_reference(path, tiny_network.build(), measure, batch=2)
    assert measure.calls == 3
    expected = tiny_network.features(pixels)
    np.testing.assert_allclose(first.features, expected, atol=1e-5)
    np.testing.assert_allclose(first.gaussian.covariance, fit(expected).covariance, atol=1e-5)
    assert first.labels is None
    with monkeypatch.context() as patch:
        patch.setattr(references, "fit", None)
        second = read_reference(path, tiny_network.build(), measure, batch=2)
    assert measure.calls == 3
    assert second.protocol == first.protocol
    # Another network or other images have other features.
    read_reference(path, tiny_network.build(seed=1), measure, batch=2)
    assert measure.calls == 6
    fewer = pixels[:4]
    np.savez(tmp_path / "b.npz", fewer)
    other = read_reference(tmp_path / "b.npz", tiny_network.build(), measure, batch=2)
    assert measure.calls == 8
    assert other.protocol["statistics"] != first.protocol["statistics"]


def test_features_are_computed_anew_when_their_code_changes(monkeypatch):
    """The code of this module, of the network's, and of those that read the images."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    network = dataclasses.replace(tiny_network.build(), modules=("vqjax.features.inception",))
    asked, codes = [], iter(["first", "first", "second"])

    def environment(*modules):
        asked.append(modules)
        return {"code": next(codes)}

    monkeypatch.setattr(references, "environment", environment)
    calls = []
    for _ in range(3):
        measure.calls = 0
        arguments = {"a": 1}, lambda start: padded([pixels], 4), 4, network, measure, 4
        references.make_reference(*arguments, ("vqjax.data.folder",))
        calls.append(measure.calls)
    assert calls == [1, 0, 1]
    own = "vqjax.evaluation.references"
    assert asked == [(own, "vqjax.features.inception", "vqjax.data.folder")] * 3


def test_statistics_and_images(tmp_path, folder):
    """As ADM's references have them: the statistics are of more images than the file has."""
    _, pixels = folder
    gaussian = fit(np.random.default_rng(0).normal(size=(9, tiny_network.DIM)))
    arrays = {"mu": gaussian.mean, "sigma": gaussian.covariance}
    np.savez(tmp_path / "both.npz", pixels, **arrays)
    reference = read_reference(tmp_path / "both.npz", tiny_network.build(), measure, batch=2)
    np.testing.assert_array_equal(reference.gaussian.mean, gaussian.mean)
    np.testing.assert_allclose(reference.features, tiny_network.features(pixels), atol=1e-5)
    assert reference.protocol["from"] == "statistics that were given"
    # Those of another network are left aside.
    np.savez(tmp_path / "other.npz", pixels, mu=np.zeros(9), sigma=np.eye(9))
    other = read_reference(tmp_path / "other.npz", tiny_network.build(), measure, batch=2)
    np.testing.assert_allclose(other.gaussian.mean, reference.features.mean(0), atol=1e-5)


def test_images_that_are_turned_have_the_size_that_is_seen(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (6, 8)).save(tmp_path / "b.jpg")
    images = ImageFolder(tmp_path)
    assert images.size == (8, 6)
    assert next(images.batches(2)).shape == (2, 8, 6, 3)


def test_statistics_alone(tmp_path):
    gaussian = fit(np.random.default_rng(0).normal(size=(9, tiny_network.DIM)))
    npz.write_statistics(tmp_path / "s.npz", gaussian, "efficientnet_lite1")
    reference = read_reference(tmp_path / "s.npz", tiny_network.build(), measure, batch=2)
    np.testing.assert_array_equal(reference.gaussian.mean, gaussian.mean)
    assert reference.features is None and reference.labels is None


def test_what_is_wrong_with_a_folder_is_named(folder, tmp_path):
    path, pixels = folder
    with pytest.raises(InputError, match="nothing is no folder: name one of images"):
        open_images(tmp_path / "nothing")
    (tmp_path / "one").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "one" / "a.png")
    with pytest.raises(InputError, match="has 1 image: at least 2"):
        open_images(tmp_path / "one")
    Image.fromarray(pixels[0][:6]).save(path / "sub1" / "z.png")
    with pytest.raises(InputError, match=r"z.png has 8x6 pixels, .*0.png has 8x8: resize"):
        open_images(path)
    Image.fromarray(pixels[0][..., 0]).save(path / "sub1" / "z.png")
    with pytest.raises(InputError, match=r"z.png is greyscale: .* save the images as RGB"):
        open_images(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the images to compare: .*empty has no images in it"):
        open_images(tmp_path / "empty")
    (path / "sub1" / "z.png").unlink()
    (path / "sub1" / "z.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"z.png: not a readable image"):
        open_images(path)
    (path / "sub1" / "z.png").unlink()
    (path / "sub1" / "z.png").write_text("no image")
    with pytest.raises(InputError, match=r"z.png: not a readable image"):
        open_images(path)
