"""Says by shapes alone what a config is: stages, models, parameters, latent grid, steps, data.

    vqjax describe --config=configs/ffhq_effvqgan.py:f=8 [--json]
    vqjax describe --workdir=runs/ffhq

Nothing is read but the config, and for a conditional prior what its run or its data set, where that
is there, says of its condition. Nothing is computed.
"""

import json

from absl import flags
from ml_collections import config_flags

from vqjax.errors import InputError
from vqjax.files import open_path
from vqjax.runs.description import as_text, describe
from vqjax.runs.workdir import read_condition, read_config

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as of train.py")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, in the place of a config file")
JSON = flags.DEFINE_bool("json", False, "For programs")


def main() -> None:
    """Prints the description."""
    if (CONFIG.value is None) == (WORKDIR.value is None):
        raise InputError("give --config=<file>, or --workdir=<folder of a run>")
    if WORKDIR.value is not None:
        workdir = open_path(WORKDIR.value, "--workdir")
        described = describe(read_config(workdir), read_condition(workdir))
    else:
        described = describe(CONFIG.value)
    print(json.dumps(described, indent=2) if JSON.value else as_text(described))
