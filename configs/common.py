"""Defaults and arguments of all configs, and the full-size system of paper 000."""

from typing import Any

from ml_collections import ConfigDict, FieldReference

from vqjax.data import DataSettings
from vqjax.errors import InputError
from vqjax.losses.reconstruction import LossWeights
from vqjax.registry import did_you_mean
from vqjax.runs.sampling import GenerationSettings
from vqjax.runs.stages import StageSettings
from vqjax.samplers import SAMPLERS
from vqjax.settings import defaults_of
from vqjax.training.adversary import AdversarialSettings
from vqjax.training.frechet_monitor import FrechetSettings
from vqjax.training.optimizers import OptimizerSettings


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
    # Steps of a stage to trace for xprof or TensorBoard: "10:13" for steps 10, 11 and 12, to the
    # folder "profile" of that stage. "" for none.
    config.profile = ""

    config.data = defaults_of(DataSettings)
    config.data.source = ConfigDict({"name": "openmoji"})
    # What the prior is told of an image: "none" or "class".
    config.condition = ConfigDict({"name": "none"})

    # Devices along each axis; -1 takes all that are left. Batches are split over data x fsdp,
    # parameters over fsdp (largest divisible axis) and tensor (heads and MLP of transformers).
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.tokenizer = tokenizer_stage()
    config.prior = prior_stage("multigrained")
    config.sampling = sampling("multigrained")
    return config


def tokenizer_stage() -> ConfigDict:
    """The defaults of a stage that trains a tokenizer."""
    stage = _stage("tokenizer")
    stage.model = ConfigDict({"name": "efficient_vqgan"})
    stage.loss = defaults_of(LossWeights)
    stage.discriminator = defaults_of(AdversarialSettings)
    stage.discriminator.model = ConfigDict({"name": "none"})  # none, patchgan or projected
    stage.discriminator.optimizer = defaults_of(OptimizerSettings)
    stage.best_metric = "psnr"
    return stage


def decoder_stage(tokenizer: ConfigDict) -> ConfigDict:
    """The defaults of a stage that trains a decoder on the codes of a tokenizer's stage."""
    stage = tokenizer.copy_and_resolve_references()
    stage.kind = "decoder"
    stage.tokenizer = "tokenizer"  # the stage whose encoder and codebook are kept
    stage.loss.vq = 0.0
    return stage


def prior_stage(name: str) -> ConfigDict:
    """The defaults of a stage that trains a prior of this name."""
    stage = _stage("prior")
    stage.tokenizer = "tokenizer"  # the stage whose codes it models
    stage.model = ConfigDict({"name": name})
    stage.best_metric = "loss_at_0.5"
    stage.best_mode = "min"
    return stage


def sampling(name: str) -> ConfigDict:
    """The defaults of drawing images from a prior of this name."""
    config = defaults_of(SAMPLERS[name].settings)
    config.update(defaults_of(GenerationSettings))
    return config


# Arguments of the full-size experiments of paper 000, and their defaults.
EFFVQGAN_ARGUMENTS = {
    "f": 16,
    "res": 256,
    "tokenizer": "efficient",
    "block": 8,
    "halo": 2,
    "T": 8,
}


def sorted_folder(train_images: int, images: int) -> ConfigDict:
    """A source: the images of a folder by their sorted names, the first ones to train on."""
    return ConfigDict(
        {
            "name": "folder",
            "path": "",
            "train_range": f"0:{train_images}",
            "validation_range": f"{train_images}:{images}",
        }
    )


def efficient_vqgan(
    arg: str, train_images: int, tokenizer_epochs: int, prior_epochs: int
) -> ConfigDict:
    """Paper 000 at full size, without its data. What the paper doesn't say is our choice.

    Args:
        arg: "key=value,..." of `EFFVQGAN_ARGUMENTS`.
        train_images: of the data set.
        tokenizer_epochs: over it.
        prior_epochs: over it.

    Raises:
        InputError: unknown argument or value.
    """
    args = parse_arg(arg, **EFFVQGAN_ARGUMENTS)
    widths, depths, multipliers = one_of(
        "f",
        args.f,
        {
            8: ((128, 256), (2, 6), (1, 1, 2, 4)),
            16: ((128, 256, 512), (2, 2, 6), (1, 1, 2, 2, 4)),
        },
    )
    one_of("res", args.res, {256: None, 512: None, 1024: None})
    config = get_config()
    config.data.resolution = args.res
    config.data.workers = 8
    large = args.res > 256

    tokenizer = config.tokenizer
    codebook = {"num_codes": 1024, "code_dim": 256, "learning": "gradient", "beta": 0.25}
    codebook |= {"decay": 0.99, "latent_norm": "none", "restart_below": 0.0}
    efficient = {
        "name": "efficient_vqgan",
        "patch_size": 4,
        "widths": widths,
        "depths": depths,
        "head_dim": 32,
        "window": 8,
        "mlp_ratio": 4,
        "remat": large,
        "dtype": "bfloat16",
        "quantizer": codebook,
    }
    # Table 7's: the convolutional tokenizer of VQGAN, with the same codes.
    convolutional = {
        "name": "vqgan",
        "width": 128,
        "multipliers": multipliers,
        "num_res_blocks": 2,
        "attention_factors": (args.f,),
        "latent_width": 256,
        "remat": large,
        "dtype": "bfloat16",
        "quantizer": codebook,
    }
    tokenizer.model = ConfigDict(
        one_of("tokenizer", args.tokenizer, {"efficient": efficient, "vqgan": convolutional})
    )
    tokenizer.batch_size = 16
    tokenizer.steps = tokenizer_epochs * train_images // tokenizer.batch_size
    tokenizer.optimizer.learning_rate = 1e-4
    tokenizer.optimizer.b1 = 0.5
    tokenizer.optimizer.b2 = 0.9
    tokenizer.optimizer.warmup_steps = 5_000
    discriminator = tokenizer.discriminator
    discriminator.start = 10_000
    discriminator.ramp = 10_000
    if args.tokenizer == "efficient":
        discriminator.model = ConfigDict({"name": "projected", "dtype": "bfloat16"})
        discriminator.augment = ("color", "translation", "cutout")
        discriminator.optimizer.learning_rate = 2e-4
        discriminator.optimizer.b1 = 0.0
        discriminator.optimizer.b2 = 0.99
    else:
        discriminator.model = ConfigDict(
            {"name": "patchgan", "num_layers": 3, "width": 64, "dtype": "bfloat16"}
        )
        discriminator.optimizer = tokenizer.optimizer.copy_and_resolve_references()

    prior = config.prior
    prior.model = ConfigDict(
        {
            "name": "multigrained",
            "condition_dropout": 0.0,
            "dim": 768,
            "num_layers": 24,
            "num_heads": 16,
            "embed_dim": 256,
            "block_size": one_of("block", args.block, {n: n for n in (1, 2, 4, 8, 16)}),
            "halo": args.halo,
            "dropout": 0.1,
            "label_smoothing": 0.1,
            "query_blocks_per_image": FieldReference("auto", field_type=object),
            "scan": True,
            "remat": True,
            "dtype": "bfloat16",
        }
    )
    prior.batch_size = 256
    prior.steps = prior_epochs * train_images // prior.batch_size
    prior.optimizer.name = "adamw"
    prior.optimizer.learning_rate = 1e-4
    prior.optimizer.b1 = 0.9
    prior.optimizer.b2 = 0.96
    prior.optimizer.weight_decay = 0.045
    prior.optimizer.warmup_steps = 5_000
    prior.use = "best"
    # Of few images: to see a run go wrong, and to choose a checkpoint.
    tokenizer.frechet.images = 2_048
    prior.frechet.images = 256 if large else 2_048
    # A block of n cells is finished after n steps at the latest.
    config.sampling.steps = min(args.T, args.block**2)
    if large:
        config.sampling.batch_size = 8
        config.sampling.decode_tile = 256
    return config


def _stage(kind: str) -> ConfigDict:
    """The settings that every stage has."""
    stage = defaults_of(StageSettings)
    stage.kind = kind
    stage.optimizer = defaults_of(OptimizerSettings)
    stage.frechet = defaults_of(FrechetSettings)
    return stage
