"""What all configs share: the defaults, and the parsing of `--config=file.py:key=value,...`."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vqjax.errors import InputError
from vqjax.registry import did_you_mean


def parse_arg(arg: str, **defaults: Any) -> ConfigDict:
    """Reads "key=value,..." into a copy of `defaults`; each value takes the type of its default.

    Raises:
        InputError: unknown key (the valid ones are listed) or a value of another type.
    """
    parsed = dict(defaults)
    for item in filter(None, arg.split(",")):
        key, _, value = item.partition("=")
        if key not in defaults:
            raise InputError(f"config argument {key!r}: {did_you_mean(key, defaults)}")
        kind = type(defaults[key])
        try:
            if kind is bool:
                parsed[key] = {"true": True, "1": True, "false": False, "0": False}[value.lower()]
            else:
                parsed[key] = kind(value)
        except (KeyError, ValueError):
            raise InputError(
                f"config argument {item!r}: {key} takes a value of type {kind.__name__},"
                f" like {key}={defaults[key]}"
            ) from None
    return ConfigDict(parsed)


def one_of(key: str, value: Any, table: dict[Any, Any]) -> Any:
    """`table[value]` for a config argument; InputError with the valid values otherwise."""
    if value not in table:
        valid = ", ".join(str(v) for v in table)
        raise InputError(f"config argument {key}={value}: valid: {valid}")
    return table[value]


def get_config() -> ConfigDict:
    """The defaults: an experiment's `get_config(arg)` starts from them and says what differs."""
    config = ConfigDict()
    config.seed = 0
    # Run in this order in one workdir; finished ones are skipped.
    config.stages = ("tokenizer", "prior")

    config.data = ConfigDict()
    config.data.source = ConfigDict({"name": "openmoji"})
    config.data.resolution = 256
    config.data.crop = "random"  # "center" or "random", after the shorter side is resized
    config.data.min_scale = (
        1.0  # random zoom: the crop takes at least this part of the shorter side
    )
    config.data.flip = True
    config.data.workers = 4  # processes that load images; 0 loads in threads of the main process
    config.data.on_broken = "error"  # or "skip": name, count and replace an unreadable image

    # Devices along each axis; -1 takes all that are left. Batches are split over data x fsdp,
    # parameters over fsdp (largest divisible axis) and tensor (heads and MLP of transformers).
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.tokenizer = _stage()
    config.tokenizer.model = ConfigDict({"name": "efficient_vqgan"})
    config.tokenizer.loss = ConfigDict(
        {"l1": 0.0, "l2": 1.0, "perceptual": 1.0, "perceptual_net": "vgg16", "vq": 1.0}
    )
    config.tokenizer.best_metric = "psnr"
    config.tokenizer.best_mode = "max"

    config.prior = _stage()
    config.prior.model = ConfigDict({"name": "multigrained", "conditional": False})
    config.prior.best_metric = "loss_at_0.5"
    config.prior.best_mode = "min"

    config.sampling = ConfigDict(
        {
            "steps": 8,  # T, parallel steps in each block
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "choice_temperature": 4.5,
            "num_images": 64,
            "batch_size": 64,
        }
    )
    return config


def _stage() -> ConfigDict:
    """The settings that every stage has."""
    stage = ConfigDict()
    stage.init_from = ""  # another workdir whose stage of this name is used instead of training one
    stage.batch_size = 256  # global
    stage.microbatches = 1  # gradient accumulation: the batch is worked off in this many parts
    stage.steps = 100_000
    stage.optimizer = ConfigDict(
        {
            "name": "adam",
            "learning_rate": 1e-4,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": placeholder(float),
            "schedule": "cosine",  # constant, cosine, linear or exponential, after the warm-up
            "warmup_steps": 0,
            "end_factor": 0.0,
        }
    )
    stage.ema_decay = 0.0  # 0 keeps no moving average of the weights
    stage.log_every = 50
    stage.eval_every = 5_000
    stage.eval_images = 2_048  # of the validation split, at most
    stage.checkpoint_every = 5_000
    stage.keep_checkpoints = 2  # the newest; the best by `best_metric` is kept besides
    stage.best_metric = ""
    stage.best_mode = "max"
    stage.use = "last"  # which checkpoint later stages and sample.py take: "last" or "best"
    return stage
