"""What all configs share: defaults, arguments, and the full-size system of paper 000."""

from typing import Any

from ml_collections import ConfigDict, FieldReference
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
    # Steps of a stage to trace for xprof or TensorBoard: "10:13" for steps 10, 11 and 12, to the
    # folder "profile" of that stage. "" for none.
    config.profile = ""

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
    config.tokenizer.discriminator = ConfigDict(
        {
            "model": {"name": "none"},  # none, patchgan or projected
            "loss": "hinge",  # or "non_saturating"
            "weight": 0.8,  # of the adversarial loss, times the adaptive weight
            "adaptive": True,  # scale it to the reconstruction's gradient at the last layer
            "max_weight": 10.0,  # clamp of the adaptive weight
            "start": 0,  # first step with a discriminator; before it, it costs no time
            "ramp": 0,  # steps over which the weight then grows from 0
            "augment": (),  # of "color", "translation", "cutout": what the discriminator sees
            "optimizer": _optimizer(),
        }
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
            "guidance": 1.0,  # classifier-free; 1 for none
            "guidance_schedule": "constant",  # or "linear": grows from 1 as an image is filled
            "num_images": 64,
            "batch_size": 64,
            "decode_tile": 0,  # side in pixels of the tiles that are decoded one by one; 0: whole
        }
    )
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
            "conditional": False,
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


def _stage() -> ConfigDict:
    """The settings that every stage has."""
    stage = ConfigDict()
    stage.init_from = ""  # another workdir whose stage of this name is used instead of training one
    stage.batch_size = 256  # global
    stage.microbatches = 1  # gradient accumulation: the batch is worked off in this many parts
    stage.steps = 100_000
    stage.optimizer = _optimizer()
    stage.ema_decay = 0.0  # 0 keeps no moving average of the weights
    stage.log_every = 50
    stage.eval_every = 5_000
    stage.eval_images = 2_048  # of the validation split, at most
    # Frechet distance at every evaluation, of so many images (0: none): "rFD-lite1" of the
    # tokenizer's reconstructions, "FD-lite1" of the prior's samples, "rFID" and "FID" with
    # inception and a file of its weights. Also as `best_metric`, with best_mode "min".
    stage.frechet = ConfigDict(
        {
            "images": 0,
            "network": "efficientnet_lite1",
            "weights": "",
            "sha256": "",
            "resize": "torch",
        }
    )
    stage.checkpoint_every = 5_000
    stage.keep_checkpoints = 2  # the newest; the best by `best_metric` is kept besides
    stage.best_metric = ""
    stage.best_mode = "max"
    stage.use = "last"  # which checkpoint later stages and sample.py take: "last" or "best"
    return stage


def _optimizer() -> ConfigDict:
    """The settings of an optimizer and its learning rate."""
    return ConfigDict(
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
