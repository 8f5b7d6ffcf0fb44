"""Efficient-VQGAN at full size: the system of paper 000, section 4.

What the paper doesn't say is our choice.
"""

from ml_collections import ConfigDict, FieldReference

from configs import common

# Arguments of the full-size experiments, and their defaults.
ARGUMENTS = {
    "f": 16,
    "res": 256,
    "tokenizer": "efficient",
    "codebook": "ema",
    "remat": "auto",
    "block": 8,
    "halo": 2,
    "T": 8,
}

# How the codes are learned: what keeps them in use, and VQGAN's way, which the paper takes.
CODEBOOKS = {
    "ema": {"learning": "ema", "latent_norm": "layer", "restart_below": 0.1},
    "plain": {"learning": "gradient", "latent_norm": "none", "restart_below": 0.0},
}


def efficient_vqgan(
    arg: str,
    train_images: int,
    tokenizer_epochs: int,
    prior_epochs: int,
    vqgan_codes: int = 1024,
    vqgan_adversary: float = 0.8,
) -> ConfigDict:
    """The full-size system, without its data.

    Args:
        arg: "key=value,..." of `ARGUMENTS`.
        train_images: of the data set.
        tokenizer_epochs: over it.
        prior_epochs: over it.
        vqgan_codes: K of the VQGAN that table 7 takes for this data set.
        vqgan_adversary: weight of the adversarial loss of that VQGAN.

    Raises:
        InputError: unknown argument or value.
    """
    args = common.parse_arg(arg, **ARGUMENTS)
    widths, depths, multipliers, attention_factors = common.one_of(
        "f",
        args.f,
        {
            4: ((128,), (6,), (1, 2, 4), ()),
            8: ((128, 256), (2, 6), (1, 1, 2, 4), (8,)),
            16: ((128, 256, 512), (2, 2, 6), (1, 1, 2, 2, 4), (16,)),
            32: ((128, 256, 512, 512), (2, 2, 2, 6), (1, 1, 2, 2, 4, 4), (32,)),
        },
    )
    common.one_of("res", args.res, {256: None, 512: None, 1024: None})
    config = common.get_config()
    config.data.resolution = args.res
    config.data.workers = 8
    large = args.res > 256
    # Where cards of 80 GB may not hold a step without, see docs/performance.md.
    need = {"tokenizer": args.res > 512, "prior": args.res // args.f > 16}
    remat = common.one_of(
        "remat",
        args.remat,
        {"auto": need, "true": dict.fromkeys(need, True), "false": dict.fromkeys(need, False)},
    )

    tokenizer = config.tokenizer
    codebook = {"num_codes": 1024, "code_dim": 256, "beta": 0.25, "decay": 0.99}
    codebook |= common.one_of("codebook", args.codebook, CODEBOOKS)
    efficient = {
        "name": "efficient_vqgan",
        "patch_size": 4,
        "widths": widths,
        "depths": depths,
        "head_dim": 32,
        "window": 8,
        "mlp_ratio": 4,
        "remat": remat["tokenizer"],
        "dtype": "bfloat16",
        "implementation": "xla",
        "quantizer": codebook,
    }
    # Table 7's: the convolutional tokenizer of VQGAN.
    convolutional = {
        "name": "vqgan",
        "width": 128,
        "multipliers": multipliers,
        "num_res_blocks": 2,
        "attention_factors": attention_factors,
        "latent_width": 256,
        "remat": remat["tokenizer"],
        "dtype": "bfloat16",
        "quantizer": codebook | {"num_codes": vqgan_codes},
    }
    # Table 2's: ViT-VQGAN Base with its own codes, at any f.
    vit = {
        "name": "vit_vqgan",
        "patch_size": args.f,
        "dim": 768,
        "num_layers": 12,
        "num_heads": 12,
        "mlp_ratio": 4,
        "grid_side": args.res // args.f,
        "scan": True,
        "remat": remat["tokenizer"],
        "dtype": "bfloat16",
        "implementation": "xla",
        "quantizer": codebook | {"num_codes": 8192, "code_dim": 32, "latent_norm": "l2"},
    }
    models = {"efficient": efficient, "vqgan": convolutional, "vit": vit}
    tokenizer.model = ConfigDict(common.one_of("tokenizer", args.tokenizer, models))
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
        discriminator.model = ConfigDict(
            {
                "name": "projected",
                "dtype": "bfloat16",
                "frozen_dtype": "float32",
                "head_depth": "fixed",
            }
        )
        discriminator.augment = ("color", "translation", "cutout")
        discriminator.optimizer.learning_rate = 2e-4
        # As its authors train it, to the end.
        discriminator.optimizer.schedule = "constant"
        discriminator.optimizer.b1 = 0.0
        discriminator.optimizer.b2 = 0.99
    else:
        discriminator.model = ConfigDict(
            {"name": "patchgan", "num_layers": 3, "width": 64, "dtype": "bfloat16"}
        )
        if args.tokenizer == "vqgan":
            # Its published training, but for when the adversary joins and the clamp of its adaptive
            # weight (10,000 there).
            tokenizer.loss.l1, tokenizer.loss.l2 = 1.0, 0.0
            tokenizer.optimizer.learning_rate = 4.5e-6 * tokenizer.batch_size
            tokenizer.optimizer.schedule = "constant"
            tokenizer.optimizer.warmup_steps = 0
            discriminator.weight = vqgan_adversary
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
            "block_size": common.one_of("block", args.block, {n: n for n in (1, 2, 4, 8, 16)}),
            "halo": args.halo,
            "dropout": 0.1,
            "label_smoothing": 0.1,
            "query_blocks_per_image": FieldReference("auto", field_type=object),
            "prefix_context": 0.5,  # 0 in the paper
            "halo_mask": "block",  # "query" in the paper
            "frame_shift": 0.1,
            "mask_schedule": "cosine",
            "scan": True,
            "remat": remat["prior"],
            "dtype": "bfloat16",
            "implementation": "xla",
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
    prior.best_metric = "loss_at_0.5"
    prior.use = "best"
    # Of few images: to see a run go wrong, and to choose a checkpoint.
    tokenizer.frechet.images = 2_048
    prior.frechet.images = 256 if large else 2_048
    # A block of n cells is finished after n steps at the latest.
    config.sampling.steps = min(args.T, args.block**2)
    if large:
        config.sampling.batch_size = 8
        # The other tokenizers are global, and decode an image whole.
        config.sampling.decode_tile = 256 if args.tokenizer == "efficient" else 0
    return config
