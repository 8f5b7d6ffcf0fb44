"""Files of other evaluators: what is written is read back, and what is wrong is named."""

import tracemalloc

import numpy as np
import pytest

from vqjax.errors import InputError
from vqjax.evaluation import npz
from vqjax.evaluation.metrics.frechet import Gaussian


def images(count=11, size=(6, 8)):
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)


def gaussian(dim=4):
    root = np.random.default_rng(1).normal(size=(dim, dim))
    return Gaussian(np.arange(dim) * 1.0, root @ root.T, 17)


def test_images_are_what_numpy_reads_and_come_back_in_batches(tmp_path):
    pixels, labels = images(), np.arange(11)
    parts = (pixels[i : i + 3] for i in range(0, 11, 3))
    npz.write_images(tmp_path / "new" / "a.npz", parts, pixels.shape, labels)
    with np.load(tmp_path / "new" / "a.npz") as content:
        np.testing.assert_array_equal(content["arr_0"], pixels)
        np.testing.assert_array_equal(content["arr_1"], labels)
    read = npz.read_images(tmp_path / "new" / "a.npz")
    assert (read.count, read.size) == (11, (6, 8))
    for start in (0, 1, 2):
        batches = list(read.batches(4, start))
        np.testing.assert_array_equal(np.concatenate(batches), pixels[4 * start :])
        assert [len(b) for b in batches] == [4, 4, 3][start:]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_others(tmp_path, save):
    pixels = images()
    save(tmp_path / "a.npz", pixels, mu=np.zeros(4), sigma=np.eye(4), sigma_s=np.eye(2))
    np.testing.assert_array_equal(
        np.concatenate([*npz.read_images(tmp_path / "a.npz").batches(5, 1)]), pixels[5:]
    )
    found = npz.read_statistics(tmp_path / "a.npz", "inception", 4)
    np.testing.assert_array_equal(found.covariance, np.eye(4))
    assert found.count is None
    # Statistics of another network do not matter where the images are.
    assert npz.read_statistics(tmp_path / "a.npz", "efficientnet_lite1", 7) is None


def test_memory_does_not_grow_with_the_images(tmp_path):
    shape = (400, 64, 64, 3)
    npz.write_images(
        tmp_path / "a.npz", (np.ones((8, *shape[1:]), np.uint8) for _ in range(50)), shape
    )
    tracemalloc.start()
    for _ in npz.read_images(tmp_path / "a.npz").batches(8):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < np.prod(shape) / 4


def test_statistics_come_back(tmp_path):
    npz.write_statistics(tmp_path / "s.npz", gaussian(), "inception")
    found = npz.read_statistics(tmp_path / "s.npz", "inception", 4)
    np.testing.assert_array_equal(found.mean, gaussian().mean)
    np.testing.assert_array_equal(found.covariance, gaussian().covariance)
    assert found.count == 17


def test_what_is_wrong_is_named(tmp_path):
    def statistics(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return npz.read_statistics(tmp_path / name, "inception", 4)

    npz.write_statistics(tmp_path / "lite.npz", gaussian(), "efficientnet_lite1")
    with pytest.raises(InputError, match=r"lite.npz has statistics of the network efficientnet"):
        npz.read_statistics(tmp_path / "lite.npz", "inception", 4)
    with pytest.raises(InputError, match=r"mu \[5\] and sigma \[5, 5\], inception has 4 features"):
        statistics("a.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(InputError, match=r"not finite"):
        statistics("b.npz", mu=np.zeros(4), sigma=np.full((4, 4), np.nan))
    with pytest.raises(InputError, match=r"has other in it: mu and sigma, or images as arr_0"):
        statistics("c.npz", other=np.zeros(4))
    assert statistics("d.npz", arr_0=images()) is None
    (tmp_path / "e.npz").write_text("no zip")
    for name, reason in (("e.npz", "it is no .npz file"), ("none.npz", "No such file")):
        with pytest.raises(InputError, match=reason):
            npz.read_images(tmp_path / name)
    for name, array in (
        ("grey.npz", images()[..., 0]),
        ("float.npz", images() / 255.0),
        ("fortran.npz", np.asfortranarray(images())),
    ):
        np.savez(tmp_path / name, array)
        with pytest.raises(InputError, match="arr_0 is"):
            npz.read_images(tmp_path / name)
