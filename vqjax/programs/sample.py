"""Samples images from a finished run, or edits an image with it.

python sample.py --workdir=runs/openmoji [--num_images=64 --temperature=0.9 --label=3 ...]
python sample.py --workdir=runs/captioned --caption="red heart"
python sample.py --workdir=... --edit=inpaint --image=a.png --mask=hole.png
python sample.py --workdir=... --edit=outpaint --image=a.png --left=128 --right=128
python sample.py --workdir=... --edit=replace --image=a.png --box=32,32,96,96 --label=cat
"""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
from absl import flags
from etils import epath

from vqjax.data.images import read_image
from vqjax.errors import InputError
from vqjax.files import open_path, write_png, write_whole
from vqjax.generation import editing
from vqjax.generation.image_grid import image_grid
from vqjax.generation.inputs import check_edits
from vqjax.generation.run import Run
from vqjax.programs import command_line, decoder_flag, sampling_flags
from vqjax.training.console import setup_logging

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of train.py")
OUT = flags.DEFINE_string("out", "", "Folder for the images [<workdir>/samples]")
SEED = flags.DEFINE_integer("seed", 0, "Another seed gives other images")
LABEL = flags.DEFINE_string(
    "label",
    "",
    "What is to be seen, for class-conditional runs: a class, by name or number [all in turn; an"
    " edit: none]",
)
CAPTION = flags.DEFINE_string(
    "caption",
    None,
    "What is to be seen, for text-conditional runs [some captions of the training set in turn; an"
    " edit: none]",
)
DECODER = decoder_flag.define()
SAMPLING = sampling_flags.define()
ACCEPTANCE = flags.DEFINE_float(
    "acceptance", 1.0, "Keep this fraction of the images, those that a classifier likes best"
)
EDIT = flags.DEFINE_enum("edit", None, ["inpaint", "outpaint", "replace"], "Edit an image")
IMAGE = flags.DEFINE_string("image", None, "Image to edit")
MASK = flags.DEFINE_string("mask", None, "inpaint: picture of the same size, white where to fill")
SIDES = {
    side: flags.DEFINE_integer(side, None, f"outpaint: pixels to add, {side}")
    for side in ("left", "right", "top", "bottom")
}
BOX = flags.DEFINE_list("box", None, "replace: x0,y0,x1,y1 in pixels")
COMPOSITE = flags.DEFINE_bool("composite", True, "Keep the image's own pixels outside the hole")
EDITS = {"inpaint": ("mask",), "outpaint": tuple(SIDES), "replace": ("box",)}
RECORDED = (
    *("seed", "label", "caption", "acceptance", "classifier", "classifier_weights", "score"),
    *("edit", "image", "composite"),
)
flags.mark_flag_as_required("workdir")


def main() -> None:
    """Checks what is asked for, restores the models, samples, decodes, writes PNGs."""
    workdir = open_path(WORKDIR.value or "", "--workdir")
    run = Run(workdir, decoder=DECODER.value)
    sampling = run.sampling(**SAMPLING.given())
    count = sampling.generation.num_images
    edit = _edit(run)
    conditions = _conditions(run, count, edit)
    rejection = SAMPLING.rejection(ACCEPTANCE.value, len(run.condition.classes), conditions)
    log = setup_logging(workdir)

    batches = run.images(
        conditions,
        sampling,
        seed=SEED.value,
        edit=edit,
        composite=COMPOSITE.value,
        rejection=rejection,
    )
    out = open_path(OUT.value, "--out") if OUT.value else workdir / "samples"
    shown: list[np.ndarray] = []
    for i, image in enumerate(itertools.chain.from_iterable(batches)):
        write_png(out / f"{i:05d}.png", image)
        shown.extend([image] if i < 64 else [])
    _write_grid(shown, 8, out / "grid.png")
    if edit:
        _write_grid([edit.canvas, editing.show_hole(edit), *shown[:8]], 10, out / "strip.png")
    if run.condition.asked_by == "caption":
        told = (f"{i:05d}.png\t{run.condition.describe(ids)}\n" for i, ids in enumerate(conditions))
        write_whole(out / "captions.tsv", "".join(told))
    used = dataclasses.asdict(sampling.sampler) | dataclasses.asdict(sampling.generation)
    used["decoder"] = run.tokenizer_stage
    used |= {
        name: flags.FLAGS[name].value for name in (*RECORDED, *itertools.chain(*EDITS.values()))
    }
    write_whole(out / "settings.json", json.dumps(used, indent=2) + "\n")
    log.info("%d images and grid.png in %s", count, out)


def _edit(run: Run) -> editing.Edit | None:
    """The edit that is asked for."""
    edits = {"image": tuple(EDITS)} | {own: (edit,) for edit in EDITS for own in EDITS[edit]}
    given = [name for name in edits if flags.FLAGS[name].value is not None]
    for name in given:
        if EDIT.value not in edits[name]:
            valid = " or ".join(edits[name])
            raise InputError(f"--{name} goes with --edit={valid}, and with nothing else")
    if not EDIT.value:
        return None
    if not IMAGE.value or given == ["image"]:
        own = " or ".join(f"--{name}" for name in EDITS[EDIT.value])
        raise InputError(f"--edit={EDIT.value} needs --image and {own}")
    # Before the tokenizer is looked at: another one alone would not do.
    check_edits(run.prior)
    image = read_image(Path(IMAGE.value))
    if EDIT.value == "inpaint":
        return editing.inpaint(run.tokenizer, image, read_image(Path(MASK.value or "")))
    if EDIT.value == "outpaint":
        sides = {side: flag.value or 0 for side, flag in SIDES.items()}
        return editing.outpaint(run.tokenizer, image, **sides)
    if not run.condition.length:
        raise InputError("--edit=replace is for conditional runs: use --edit=inpaint instead")
    if not _asked():
        asked_by = run.condition.asked_by
        raise InputError(f"--edit=replace needs --{asked_by}: what is to be in the box")
    return editing.replace(run.tokenizer, image, command_line.read_box(BOX.value or ()))


def _conditions(run: Run, count: int, edit: editing.Edit | None) -> np.ndarray:
    """A condition for every image: the one asked for, or all in turn; for an edit, or none."""
    asked = _asked()
    if len(asked) > 1:
        raise InputError("--label and --caption: a run is told one of the two, so give one")
    try:
        return run.edit_conditions(count, **asked) if edit else run.conditions(count, **asked)
    except InputError as e:
        flag = f"--{next(iter(asked))}=" if asked else f"--edit={EDIT.value}: "
        raise InputError(f"{flag}{e}") from None


def _asked() -> dict[str, str]:
    """The flag that says what is to be seen; an empty label asks for nothing."""
    given = {"label": LABEL.value or None, "caption": CAPTION.value}
    return {name: value for name, value in given.items() if value is not None}


def _write_grid(images: list[np.ndarray], columns: int, file: epath.Path) -> None:
    write_png(file, image_grid(np.stack(images), columns))
