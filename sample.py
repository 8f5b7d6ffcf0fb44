"""Samples images from a finished run.

python sample.py --workdir=runs/openmoji [--num_images=64 --temperature=0.9 --label=3 ...]
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

from vqjax import commands
from vqjax.errors import InputError
from vqjax.samplers.blockwise import sample
from vqjax.training.console import setup_logging
from vqjax.training.experiment import build_models
from vqjax.training.loop import placed
from vqjax.training.pictures import image_grid
from vqjax.training.prior_stage import condition_of, prior_shapes, sampling_spec, tokenizer_shapes
from vqjax.training.sharding import batch_sharding, make_mesh, to_host
from vqjax.training.state import random_key
from vqjax.training.weights import load_weights
from vqjax.training.workdir import read_class_names, read_config, trained_stage

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of train.py")
OUT = flags.DEFINE_string("out", "", "Folder for the images [<workdir>/samples]")
SEED = flags.DEFINE_integer("seed", 0, "Another seed gives other images")
LABEL = flags.DEFINE_string(
    "label", "", "Class to sample, by name or number; for class-conditional runs [all in turn]"
)
# Those that are not given are the config's.
SETTINGS = {
    "num_images": flags.DEFINE_integer("num_images", None, "How many images"),
    "batch_size": flags.DEFINE_integer("batch_size", None, "How many at a time"),
    "steps": flags.DEFINE_integer("steps", None, "Parallel steps in each block"),
    "temperature": flags.DEFINE_float("temperature", None, "Of the softmax codes are drawn from"),
    "top_k": flags.DEFINE_integer("top_k", None, "Draw among the k most likely codes; 0 for all"),
    "top_p": flags.DEFINE_float("top_p", None, "Draw among codes of this probability; 1 for all"),
    "choice_temperature": flags.DEFINE_float(
        "choice_temperature", None, "Noise on the confidence by which tokens are kept"
    ),
}
flags.mark_flag_as_required("workdir")


def main() -> None:
    """Restores both stages, samples, decodes, writes PNGs."""
    workdir = Path(WORKDIR.value or "")
    config = read_config(workdir)
    settings = config.sampling
    for name, flag in SETTINGS.items():
        if flag.value is not None:
            settings[name] = flag.value
    if settings.num_images < 1 or settings.batch_size < 1:
        raise InputError("--num_images and --batch_size: at least 1 is needed")
    log = setup_logging(workdir)

    class_names = read_class_names(workdir)
    tokenizer, prior = build_models(config, len(class_names))
    spec = sampling_spec(prior, prior.grid, settings)
    labels = _labels(class_names, prior.num_classes, settings.num_images)

    mesh = make_mesh({"data": -1})
    tokenizer_variables = load_weights(
        *trained_stage(config, workdir, "tokenizer"),
        placed(tokenizer_shapes(tokenizer, config.data.resolution), mesh),
    )
    prior_variables = load_weights(
        *trained_stage(config, workdir, "prior"), placed(prior_shapes(prior), mesh)
    )
    decode = jax.jit(lambda variables, t: tokenizer.apply(variables, t, method="decode"))

    # A batch that the devices share evenly; what the last one has too many is thrown away.
    batch = -(-min(settings.batch_size, settings.num_images) // mesh.size) * mesh.size
    images = []
    for start in tqdm(range(0, settings.num_images, batch), desc="sampling", unit="batch"):
        rows = np.resize(labels[start : start + batch], batch)
        known = jnp.zeros((batch, spec.grid[0] * spec.grid[1]), jnp.int32)
        known, rows = jax.device_put((known, rows), batch_sharding(mesh))
        tokens = sample(
            prior.apply,
            prior_variables,
            random_key(SEED.value, "sample", start),
            condition_of(prior, rows),
            known,
            jnp.zeros_like(known, bool),
            spec,
        )
        images.append(np.clip(to_host(decode(tokenizer_variables, tokens)), -1.0, 1.0))
    pixels = np.concatenate(images)[: settings.num_images]

    out = Path(OUT.value or workdir / "samples")
    out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        Image.fromarray(np.round((image + 1) * 127.5).astype(np.uint8)).save(out / f"{i:05d}.png")
    Image.fromarray(image_grid(pixels[:64], columns=8)).save(out / "grid.png")
    used = {"seed": SEED.value, "label": LABEL.value, **settings.to_dict()}
    (out / "settings.json").write_text(json.dumps(used, indent=2) + "\n")
    log.info("%d images and grid.png in %s", len(pixels), out)


def _labels(class_names: tuple[str, ...], num_classes: int, count: int) -> np.ndarray:
    """A label for every image: the one asked for, or all in turn."""
    if not LABEL.value:
        return (np.arange(count) % max(num_classes, 1)).astype(np.int32)
    if not num_classes:
        raise InputError(f"--label={LABEL.value}: this run is unconditional; leave the flag out")
    if LABEL.value in class_names:
        return np.full(count, class_names.index(LABEL.value), np.int32)
    if LABEL.value.isdigit() and int(LABEL.value) < num_classes:
        return np.full(count, int(LABEL.value), np.int32)
    raise InputError(
        f"--label={LABEL.value}: give a number from 0 to {num_classes - 1}, or one of:"
        f" {', '.join(class_names[:20])}{', ...' if num_classes > 20 else ''}"
    )


if __name__ == "__main__":
    commands.run(main)
