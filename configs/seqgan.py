"""SeQ-GAN at full size: the system of paper 001, with tables 7 to 10; and how it is made small.

What the paper doesn't say is our choice.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common

# Arguments of the experiments, and their defaults.
ARGUMENTS = {
    "prior": "nar",
    "size": "base",
    "alpha": 1.0,
    "codebook": "entropy",
    "decoder": "base",
    "perceptual": "semantic",
    "phases": 2,
}

# Table 5: how the codes are kept in use.
CODEBOOKS = {
    # Softer than this, a few codes are enough to make the usage look even.
    "entropy": {"entropy": 0.01, "entropy_temperature": 0.01},
    "fn": {"num_codes": 8192, "code_dim": 32, "latent_norm": "l2"},
    "kmeans": {},
    "plain": {},
}
# Table 1: what a decoder has that is trained together with encoder and codebook.
DECODERS = {"base": "none", "conv": "convolution_x2", "attention": "attention_x2"}
# Table 8: width, layers and heads of the transformers.
SIZES = {"base": (768, 24, 16), "large": (1024, 24, 16)}
# Arguments and their defaults where the models may be small, which is for a CPU.
SMALL_ARGUMENTS = ARGUMENTS | {"prior": "ar", "size": "small", "res": 32, "f": 4}


@dataclasses.dataclass(frozen=True)
class Training:
    """A column of tables 9 and 10: batch sizes, steps, and how codes are drawn.

    Attributes:
        images: of the training set.
        batch: of phase 1; of one phase alone it is `single_batch`, with its prior's.
        steps: of phase 1.
        decoder_batch: of phase 2.
        prior_batch: of the transformers.
        prior_steps: likewise.
        top_p: of the autoregressive prior.
        temperature: of the masked one.
        single_batch: of the observations and ablations (section 6.1), None for `batch`.
        finetunes: phase 1 starts from an ImageNet tokenizer, at a constant rate.
    """

    images: int
    batch: int
    steps: int
    decoder_batch: int
    prior_batch: int
    prior_steps: int = 500_000
    top_p: float = 0.98
    temperature: float = 0.65
    single_batch: int | None = None
    finetunes: bool = False


# What folders of other images are trained with, too.
FFHQ = Training(images=60_000, batch=64, steps=300_000, decoder_batch=32, prior_batch=32)


def seqgan(args: ConfigDict, training: Training) -> ConfigDict:
    """The full-size system, without its data.

    Args:
        args: values of `ARGUMENTS`.
        training: on this data set.

    Raises:
        InputError: a value that there is not.
    """
    one_phase = common.one_of("phases", args.phases, {1: True, 2: False})
    enhancement = common.one_of("decoder", args.decoder, DECODERS)
    one_phase |= enhancement != "none"
    config = common.get_config()
    config.data.resolution = 256
    config.data.workers = 8

    tokenizer = config.tokenizer
    codebook = {
        "num_codes": 1024,
        "code_dim": 256,
        "learning": "gradient",
        "beta": 0.25,
        # Of MaskGIT's codes, a variance of 1 / K: smaller ones are all alike to begin with, and
        # stay so.
        "init_scale": 0.054,
    }
    tokenizer.model = ConfigDict(
        {
            "name": "seqgan",
            "width": 128,
            "multipliers": (1, 1, 2, 2, 4),
            "num_res_blocks": 2,
            "enhancement": enhancement,
            "regions": (16, 16, 8, 8, 4),
            "head_dim": 64,
            "remat": False,
            "dtype": "bfloat16",
            "implementation": "xla",
            "quantizer": codebook | common.one_of("codebook", args.codebook, CODEBOOKS),
        }
    )
    loss = tokenizer.loss
    loss.l1, loss.l2 = 1.0, 0.0
    # Plain features of VGG16 in the place of LPIPS.
    loss.perceptual, loss.semantic = 0.0, 1.0
    loss.semantic_ratio = args.alpha
    loss.semantic_layers = args.perceptual
    # The logits are VGG16's own, which takes a file: loss.semantic_weights.
    loss.semantic_logits = "vgg16"
    discriminator = tokenizer.discriminator
    discriminator.model = ConfigDict(
        {"name": "stylegan2", "channel_base": 32_768, "channel_max": 512, "dtype": "bfloat16"}
    )
    # ViT-VQGAN's adversary, as the paper suggests.
    discriminator.loss = "non_saturating"
    discriminator.weight = 0.1
    discriminator.adaptive = False
    discriminator.r1_gamma = 10.0
    discriminator.r1_every = 16
    single = one_phase and training.single_batch
    tokenizer.batch_size = training.single_batch if single else training.batch
    tokenizer.steps = training.steps
    if args.codebook == "kmeans":
        # After each epoch, from 256 vectors for each code.
        tokenizer.kmeans.every = training.images // tokenizer.batch_size
        tokenizer.kmeans.images = 1_024
    tokenizer.optimizer.b1 = 0.9
    tokenizer.optimizer.b2 = 0.99
    if training.finetunes:
        tokenizer.optimizer.learning_rate = 5e-5
        tokenizer.optimizer.schedule = "constant"
    else:
        tokenizer.optimizer.learning_rate = 1e-4
        tokenizer.optimizer.schedule = "cosine"
        tokenizer.optimizer.end_factor = 0.5
    discriminator.optimizer = tokenizer.optimizer.copy_and_resolve_references()
    # Of few images: to see a run go wrong, and to choose a checkpoint.
    tokenizer.frechet.images = 2_048

    if one_phase:
        config.stages = ("tokenizer", "prior")
    else:
        config.stages = ("tokenizer", "decoder", "prior")
        decoder = config.decoder = common.decoder_stage(tokenizer)
        decoder.model.enhancement = "attention"
        decoder.loss.semantic_ratio = 0.0
        decoder.batch_size = training.decoder_batch
        decoder.steps = 200_000
        decoder.optimizer = common.tokenizer_stage().optimizer
        decoder.optimizer.learning_rate = 5e-5
        decoder.optimizer.schedule = "constant"
        decoder.optimizer.b1 = 0.5
        decoder.optimizer.b2 = 0.9
        decoder.discriminator.optimizer = decoder.optimizer.copy_and_resolve_references()

    name = common.one_of("prior", args.prior, {"ar": "autoregressive", "nar": "masked"})
    prior = config.prior = common.prior_stage(name)
    dim, layers, heads = common.one_of("size", args.size, SIZES)
    prior.model.update(
        {
            "condition_dropout": 0.0,
            "dim": dim,
            "num_layers": layers,
            "num_heads": heads,
            "norm": "post",
            "dropout": 0.1,
            "label_smoothing": 0.1,
            "scan": True,
            "remat": False,
            "dtype": "bfloat16",
            "implementation": "xla",
        }
    )
    prior.batch_size = training.single_batch if single else training.prior_batch
    prior.steps = 500_000 if single else training.prior_steps
    prior.optimizer.name = "adamw"
    prior.optimizer.learning_rate = 1e-4
    prior.optimizer.b1 = 0.9
    prior.optimizer.b2 = 0.96
    prior.optimizer.weight_decay = 1e-2
    prior.optimizer.warmup_steps = 5_000
    config.sampling = common.sampling(name)
    if args.prior == "ar":
        held, prior.optimizer.schedule, prior.optimizer.end_factor = 80_000, "exponential", 0.05
        prior.best_metric = "nats_per_token"
        config.sampling.top_p = training.top_p
    else:
        held, prior.optimizer.schedule, prior.optimizer.end_factor = 50_000, "linear", 0.0
        prior.model.mask_schedule = "cosine"
        prior.best_metric = "loss_at_0.5"
        config.sampling.temperature = training.temperature
        config.sampling.steps = 12
    prior.optimizer.hold_steps = held - prior.optimizer.warmup_steps
    prior.use = "best"
    prior.frechet.images = 2_048
    return config


def any_size(arg: str) -> ConfigDict:
    """The system at any resolution, and at a size that a CPU trains in minutes.

    Args:
        arg: "key=value,..." of `SMALL_ARGUMENTS`.

    Raises:
        InputError: unknown argument or value.
    """
    args = common.parse_arg(arg, **SMALL_ARGUMENTS)
    common.one_of("size", args.size, {"small": None, **SIZES})
    full = args.copy_and_resolve_references()
    full.size = "base" if args.size == "small" else args.size
    config = seqgan(full, FFHQ)
    config.data.resolution = args.res
    multipliers, regions = common.one_of(
        "f",
        args.f,
        {
            4: ((1, 2, 4), (8, 8, 4)),
            8: ((1, 1, 2, 4), (8, 8, 8, 4)),
            16: ((1, 1, 2, 2, 4), (16, 16, 8, 8, 4)),
        },
    )
    for name in config.stages[:-1]:
        config[name].model.multipliers = multipliers
        config[name].model.regions = regions
    if args.size == "small":
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """Makes the models of a config small and their training short."""
    config.data.workers = 0
    for name in config.stages[:-1]:
        stage = config[name]
        model, discriminator = stage.model, stage.discriminator
        model.width, model.num_res_blocks, model.head_dim, model.dtype = 32, 1, 32, "float32"
        model.quantizer.code_dim = min(model.quantizer.code_dim, 64)
        # Of EfficientNet-lite0, which comes with a package, on images that are not enlarged much.
        # The loss's gradient is a hundred to a thousand times that of l1: a short training does not
        # get through all of it, and colours would be lost.
        stage.loss.semantic_logits = "efficientnet_lite0"
        stage.loss.semantic_side = 64
        stage.loss.semantic = 0.002
        discriminator.model.update({"channel_base": 1024, "channel_max": 64, "dtype": "float32"})
        stage.batch_size = 16
        stage.frechet.images = 0
        for optimizer in (stage.optimizer, discriminator.optimizer):
            optimizer.learning_rate = 1e-3
        stage.optimizer.clip_norm = 1.0
    kmeans = config.tokenizer.kmeans
    if kmeans.every:
        kmeans.every, kmeans.images = 50, 256
    config.tokenizer.steps = 350
    config.tokenizer.optimizer.warmup_steps = 50
    if "decoder" in config.stages:
        config.decoder.steps = 100
    prior = config.prior
    prior.model.update(
        {
            "dim": 128,
            "num_layers": 4,
            "num_heads": 4,
            # Few layers are soon compiled, and a step is a tenth faster without.
            "scan": False,
            "dtype": "float32",
        }
    )
    prior.batch_size = 32
    prior.steps = 450
    prior.frechet.images = 0
    prior.ema_decay = 0.99
    prior.optimizer.learning_rate = 2e-3
    prior.optimizer.clip_norm = 1.0
    prior.optimizer.warmup_steps = 100
    prior.optimizer.hold_steps = 200
    for name in config.stages:
        config[name].eval_every = config[name].steps // 2
        config[name].checkpoint_every = config[name].steps // 4
