"""MQ-VAE and Stackformer at full size: the system of paper 002; and how it is made small.

The paper's supplement, which has its batches and steps, is not at hand: those are our choice, as is
what else the paper doesn't say. What the authors' published code says is taken from there.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from configs import common
from vqjax.errors import InputError

# Arguments of the experiments, and their defaults: the headline model.
ARGUMENTS = {
    "f": 8,
    "mask": "adaptive",
    "mask_ratio": 0.25,
    "demask": "",
    "size": "small",
}
# Those where the models may be tiny, which is for a CPU.
TINY_ARGUMENTS = ARGUMENTS | {"f": 4, "size": "tiny", "res": 32}
# Widths of the levels over the first one's, by the downsampling factor.
MULTIPLIERS = {4: (1, 2, 2), 8: (1, 1, 2, 2), 16: (1, 1, 2, 2, 4), 32: (1, 1, 2, 2, 4, 4)}
# Layers of the Code- and of the Position-Transformer (section 4.1).
SIZES = {"small": (18, 6), "base": (36, 12)}


@dataclasses.dataclass(frozen=True)
class Training:
    """Batches and steps on a data set.

    Attributes:
        steps: of the tokenizer.
        batch: its images.
        prior_steps: of Stackformer.
        prior_batch: its images.
    """

    steps: int
    batch: int
    prior_steps: int
    prior_batch: int


# What folders of other images are trained with, too.
FFHQ = Training(steps=250_000, batch=32, prior_steps=200_000, prior_batch=64)


def mqvae(args: ConfigDict, training: Training) -> ConfigDict:
    """The full-size system, without its data.

    Args:
        args: values of `ARGUMENTS`.
        training: on this data set.

    Raises:
        InputError: a value that there is not.
    """
    if args.mask == "none" and args.mask_ratio != ARGUMENTS["mask_ratio"]:
        raise InputError(
            f"config argument mask_ratio={args.mask_ratio}: mask=none masks nothing, leave it out"
        )
    config = common.get_config()
    config.data.resolution = 256
    config.data.workers = 8

    tokenizer = config.tokenizer
    tokenizer.model = ConfigDict(
        {
            "name": "mqvae",
            "width": 128,
            "multipliers": common.one_of("f", args.f, MULTIPLIERS),
            "num_res_blocks": 2,
            "attention_factors": (args.f,),
            "latent_width": 256,
            "mask": args.mask,
            "mask_ratio": args.mask_ratio,
            "scorer": "mlp",
            "demask": args.demask or ("none" if args.mask == "none" else "mask_updating"),
            "demask_blocks": 8,
            "remat": False,
            "dtype": "bfloat16",
            "quantizer": {
                "num_codes": 1024,
                "code_dim": 256,
                "learning": "ema",
                "beta": 0.25,
                "decay": 0.99,
                "restart_below": 1.0,
            },
        }
    )
    tokenizer.loss.l1, tokenizer.loss.l2 = 1.0, 0.0
    tokenizer.loss.perceptual = 1.0
    discriminator = tokenizer.discriminator
    discriminator.model = ConfigDict(
        {"name": "patchgan", "num_layers": 3, "width": 64, "dtype": "bfloat16"}
    )
    discriminator.weight = 0.75
    discriminator.max_weight = 1.0
    tokenizer.batch_size = training.batch
    tokenizer.steps = training.steps
    tokenizer.optimizer.learning_rate = 1e-4
    tokenizer.optimizer.b1 = 0.5
    tokenizer.optimizer.b2 = 0.9
    tokenizer.optimizer.warmup_steps = 2_000
    discriminator.optimizer = tokenizer.optimizer.copy_and_resolve_references()
    # Of few images: to see a run go wrong, and to choose a checkpoint.
    tokenizer.frechet.images = 2_048

    # A code for every cell leaves no position to predict: VQGAN's transformer, of the same size.
    name = "autoregressive" if args.mask == "none" else "stackformer"
    prior = config.prior = common.prior_stage(name)
    prior.model.update(_depth(name, *common.one_of("size", args.size, SIZES)))
    prior.model.update(
        {
            "condition_dropout": 0.0,
            "dim": 1024,
            "num_heads": 16,
            "dropout": 0.1,
            "label_smoothing": 0.0,
            "scan": True,
            "remat": False,
            "dtype": "bfloat16",
            "implementation": "xla",
        }
    )
    prior.batch_size = training.prior_batch
    prior.steps = training.prior_steps
    prior.optimizer.name = "adamw"
    prior.optimizer.learning_rate = 5e-4
    prior.optimizer.b1 = 0.9
    prior.optimizer.b2 = 0.95
    prior.optimizer.weight_decay = 1e-2
    prior.optimizer.warmup_steps = 2_000
    prior.optimizer.clip_norm = 1.0
    prior.best_metric = "nats_per_token"
    prior.use = "best"
    prior.frechet.images = 2_048
    config.sampling = common.sampling(name)
    return config


def _depth(name: str, layers: int, position_layers: int) -> dict[str, Any]:
    """The fields of a prior that say how deep it is."""
    if name == "stackformer":
        return {"num_layers": layers, "num_position_layers": position_layers}
    return {"num_layers": layers + position_layers, "norm": "pre"}


def any_size(arg: str) -> ConfigDict:
    """The system at any resolution, and at a size that a CPU trains in minutes.

    Args:
        arg: "key=value,..." of `TINY_ARGUMENTS`.

    Raises:
        InputError: unknown argument or value.
    """
    args = common.parse_arg(arg, **TINY_ARGUMENTS)
    common.one_of("size", args.size, {"tiny": None, **SIZES})
    full = args.copy_and_resolve_references()
    full.size = "small" if args.size == "tiny" else args.size
    config = mqvae(full, FFHQ)
    config.data.resolution = args.res
    if args.size == "tiny":
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """Makes the models of a config small and their training short."""
    config.data.workers = 0
    tokenizer = config.tokenizer
    tokenizer.batch_size, tokenizer.steps = 16, 600
    tokenizer.model.update(
        {
            "width": 32,
            "num_res_blocks": 1,
            "latent_width": 64,
            "demask_blocks": 4,
            "dtype": "float32",
        }
    )
    tokenizer.model.quantizer.code_dim = 64
    # A batch has fewer vectors than there are codes: at 1 nearly all would restart all the time.
    tokenizer.model.quantizer.restart_below = 0.1
    # Forgets soon that a code was in use, so that those that never are restart after 45 steps; with
    # 0.99 it would be 230, and a batch's few codes are all that is learned by until then.
    tokenizer.model.quantizer.decay = 0.95
    tokenizer.loss.perceptual = 0.3
    tokenizer.loss.perceptual_net = "alexnet"
    discriminator = tokenizer.discriminator
    discriminator.model.update({"num_layers": 2, "width": 32, "dtype": "float32"})
    # Late, when reconstructions are good, and slowly.
    discriminator.start, discriminator.ramp = 450, 100
    for optimizer in (tokenizer.optimizer, discriminator.optimizer):
        optimizer.learning_rate = 1e-3
        optimizer.b2 = 0.99
        optimizer.warmup_steps = 50
    tokenizer.optimizer.clip_norm = 1.0
    tokenizer.frechet.images = 0

    prior = config.prior
    prior.batch_size, prior.steps = 32, 450
    prior.model.update(_depth(prior.model.name, 3, 1))
    prior.model.update(
        {
            "dim": 128,
            "num_heads": 4,
            # Few layers are soon compiled, and a step is a tenth faster without.
            "scan": False,
            "dtype": "float32",
        }
    )
    prior.frechet.images = 0
    prior.ema_decay = 0.99
    prior.optimizer.learning_rate = 2e-3
    prior.optimizer.warmup_steps = 100
    for stage in (tokenizer, prior):
        stage.eval_every = stage.steps // 2
        stage.checkpoint_every = stage.steps // 4
