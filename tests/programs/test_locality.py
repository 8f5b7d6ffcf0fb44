"""The locality command: what it measures, the picture it draws, what it refuses."""

import re

import command_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image

from vqjax.generation.run import Run
from vqjax.runs.workdir import write_config
from vqjax.tokenizers import EfficientVQGAN
from vqjax.tokenizers.base import tokenizer_shapes


@pytest.fixture(scope="module")
def locality():
    return command_runs._load("locality")[0]


# Two whose pixels depend on all codes, beside that of the tiny config.
GLOBAL = {
    "vit_vqgan": {"patch_size": 4, "dim": 16, "num_layers": 1, "num_heads": 2, "grid_side": 4},
    "vqgan": {"width": 8, "multipliers": (1, 1, 1), "num_res_blocks": 1, "attention_factors": ()},
}


@pytest.fixture
def workdir(tmp_path, monkeypatch, request):
    """A run whose tokenizer has random weights: it is as local as any."""

    def draw(run):
        rng, shapes = np.random.default_rng(0), tokenizer_shapes(run.tokenizer, 16)
        return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes)

    monkeypatch.setattr(Run, "tokenizer_variables", property(draw))
    images = tiny.write_images(tmp_path / "images")
    config = tiny.get_config(f"path={images}")
    name = getattr(request, "param", None)
    if name:
        quantizer = config.tokenizer.model.quantizer
        model = {"name": name, **GLOBAL[name], "quantizer": quantizer}
        config.tokenizer.model = ConfigDict(model)
    write_config(config, tmp_path / "run")
    return tmp_path / "run"


def call(*args):
    return command_runs.call("locality", *args)


BOX = (4, 8, 8, 10)  # x0, y0, x1, y1


def test_distances_are_of_the_farther_axis(locality):
    distance = locality.distance_to_box((16, 20), BOX)
    for y, x in np.ndindex(16, 20):
        inside = [(v, u) for v in range(8, 10) for u in range(4, 8)]
        assert distance[y, x] == min(max(abs(y - v), abs(x - u)) for v, u in inside)


def test_reach_is_where_the_change_is(locality):
    change = np.zeros((16, 20))
    change[8:10, 4:8] = 1.0
    assert locality.reach(change, BOX, 0.99) == locality.reach(change, BOX, 1.0) == 0
    # 8 in the box, 1 at 3 pixels and 1 at 7: nine tenths lie within 3.
    change[11, 10], change[12, 4], change[8, 14] = 0.5, 0.5, 1.0
    reaches = [locality.reach(change, BOX, share) for share in (0.8, 0.85, 0.9, 0.91, 1.0)]
    assert reaches == [0, 3, 3, 7, 7]
    # However small, it counts for the whole reach.
    change[0, 19] = 1e-30
    assert locality.reach(change, BOX, 1.0) == 12


def test_the_mean_change_of_each_ring(locality):
    change = np.zeros((16, 20))
    change[8:10, 4:8] = 3.0
    # Rings of 2 pixels: the first has all pixels at a distance of 1 or 2, corners included.
    change[6, 4], change[12, 8], change[10, 10] = 8.0, 4.0, 12.0
    falloff = locality.falloff(change, BOX, 2)
    areas = [8, 6 * 8 - 8, 10 * 12 - 6 * 8]
    np.testing.assert_allclose(falloff[:3], [3.0, 8 / areas[1], 16 / areas[2]])
    assert len(falloff) == 1 + 6 and not np.any(falloff[3:])


def test_heat_goes_from_black_to_white(locality):
    change = np.linspace(0, 3, 12).reshape(3, 4)
    heat = locality.heat_map(change)
    assert np.all(heat[0, 0] == -1) and np.all(heat[-1, -1] == 1)
    assert np.all(np.diff(heat.sum(-1).ravel()) > 0)


def test_the_strip_outlines_the_region_in_every_image(locality):
    images = np.full((3, 16, 16, 3), -1.0)
    picture = locality.strip(images, BOX)
    side = (picture.shape[1] - 2 * 4) // 3
    factor = side // 16
    green = (picture == (0, 255, 0)).all(-1)
    for i in range(3):
        rows, columns = np.nonzero(green[:, i * (side + 4) :][:, :side])
        assert (rows.min(), rows.max() + 1) == (factor * 8, factor * 10)
        assert (columns.min(), columns.max() + 1) == (factor * 4, factor * 8)


def test_a_picture_of_a_run(workdir, tmp_path, capsys):
    # 4x4 latents of 4 pixels, one level of a plain and a shifted block with windows of 2 cells: a
    # changed cell reaches its window and a cell beyond it, and the tail 2 pixels more.
    out = tmp_path / "new" / "locality.png"
    flags = [f"--workdir={workdir}", "--resolution=48", "--box=6,4,8,6", f"--out={out}"]
    assert call(*flags, "--code=3") == 0
    said = capsys.readouterr().err
    assert "all of it: within 6 pixels (1.5 latent cells); beyond, nothing changes" in said
    picture = np.asarray(Image.open(out))
    side = 48 * (128 // 48)
    assert picture.shape == (side, 4 * side + 3 * 4, 3)
    # Black, but for the outline, where nothing changes.
    heat = picture[:, -side:]
    assert heat[: 2 * 9].max() == 0 and heat[2 * 16 : 2 * 24, 2 * 24 : 2 * 32].mean() > 50


@pytest.mark.parametrize("workdir", GLOBAL, indirect=True)
def test_a_tokenizer_with_global_attention(workdir, capsys):
    """Every pixel changes, and the page says by how much around the region."""
    assert call(f"--workdir={workdir}", "--resolution=24", "--box=0,0,1,1", "--code=3") == 0
    said = capsys.readouterr().err
    assert "it reaches the border of the image" in said
    shares = re.search("of that inside: (.*)", said).group(1).split(", ")
    assert [share.split(" % at ")[1] for share in shares] == ["1", "2", "3", "4", "5"]
    assert all(float(share.split(" %")[0]) > 0 for share in shares)
    heat = np.asarray(Image.open(workdir / "locality.png"))[:, -24 * 5 :]
    assert np.all(heat.max(-1) > 0)


def test_an_image_file(workdir, tmp_path, capsys):
    file = tmp_path / "image.png"
    Image.new("RGB", (40, 30), (250, 0, 0)).save(file)
    assert call(f"--workdir={workdir}", f"--image={file}", "--box=1,1,3,3") == 0
    assert "it reaches the border of the image" in capsys.readouterr().err
    picture = np.asarray(Image.open(workdir / "locality.png"))
    np.testing.assert_array_equal(picture[0, 0], (250, 0, 0))
    assert picture.shape[0] == 16 * 8


def test_sparse_tokens_have_no_region(workdir, monkeypatch, capsys):
    monkeypatch.setattr(EfficientVQGAN, "token_kind", "sparse")
    assert call(f"--workdir={workdir}") == 2
    assert "error: locality needs a code for every cell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--box=0,0,5,1"], "--box=0,0,5,1: x0 < x1 from 0 to 4 and y0 < y1 from 0 to 4"),
        (["--box=2,0,2,1"], "--box=2,0,2,1: x0 < x1"),
        (["--box=1,2,3"], "--box=1,2,3: write it as x0,y0,x1,y1"),
        (["--code=32"], "--code=32: one from 0 to 31 is needed"),
        (["--resolution=50"], "50 pixels does not fit"),
        (["--image=nowhere.png"], "nowhere.png: No such file"),
        (["--image=pyproject.toml"], "pyproject.toml: not a readable image"),
    ],
)
def test_wrong_input(flags, expected, workdir, capsys):
    assert call(f"--workdir={workdir}", *flags) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and expected in last
    assert not (workdir / "locality.png").exists()
