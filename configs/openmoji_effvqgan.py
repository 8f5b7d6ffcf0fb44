"""Efficient-VQGAN on OpenMoji: the README's run, minutes on a CPU, nothing left out.

    python train.py --config=configs/openmoji_effvqgan.py --workdir=runs/openmoji
    python sample.py --workdir=runs/openmoji

One patch merging, shifted windows, a halo and several query blocks, as in `ffhq_effvqgan.py`, only
smaller. It stands for no table of paper 000; what it reaches is in docs/performance.md. Arguments,
as in `--config=...:res=64,f=8`:

    res     side of the images in pixels (32)
    f       downsampling factor: 4, 8 or 16 (4); larger images want a larger one
    size    small or base: width of both models (small)
    tokenizer
            efficient or vit (efficient): the paper's, or ViT-VQGAN's two transformers with global
            attention, which `vqjax locality` shows to be local in effect (figure 1)
    gan     patchgan, projected or none (patchgan). The projected one looks at images enlarged to
            224x224, which takes an accelerator or hours

Longer runs, for an hour or for a GPU:

    --config=configs/openmoji_effvqgan.py:res=64,f=8,gan=projected
    --config=configs/openmoji_effvqgan.py:res=1024,f=16 --config.tokenizer.batch_size=2
"""

from ml_collections import ConfigDict, FieldReference

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    args = common.parse_arg(arg, res=32, f=4, size="small", gan="patchgan", tokenizer="efficient")
    config = common.get_config()
    config.data.source = ConfigDict({"name": "openmoji", "cache_dir": ""})
    config.data.resolution = args.res
    config.data.crop = "center"
    config.data.workers = 0

    patch_size, levels = common.one_of("f", args.f, {4: (2, 2), 8: (4, 2), 16: (4, 3)})
    width, dim, layers = common.one_of(
        "size", args.size, {"small": (32, 128, 4), "base": (128, 512, 12)}
    )

    codebook = {
        "num_codes": 1024,
        "code_dim": 32,
        "learning": "ema",
        "beta": 0.25,
        "decay": 0.99,
        "latent_norm": "layer",
        "restart_below": 0.1,
    }
    efficient = {
        "name": "efficient_vqgan",
        "patch_size": patch_size,
        "widths": (width, 4 * width, 4 * width)[:levels],
        "depths": (2, 4, 4)[:levels],
        "head_dim": 32,
        "window": 4,
        "mlp_ratio": 4,
        "remat": False,
        "dtype": "float32",
        "implementation": "xla",
        "quantizer": codebook,
    }
    vit = {
        "name": "vit_vqgan",
        "patch_size": args.f,
        "dim": dim,
        "num_layers": layers,
        "num_heads": dim // 32,
        "mlp_ratio": 4,
        "grid_side": args.res // args.f,
        "scan": True,
        "remat": False,
        "dtype": "float32",
        "implementation": "xla",
        "quantizer": codebook | {"latent_norm": "l2"},
    }
    tokenizer = config.tokenizer
    tokenizer.model = ConfigDict(
        common.one_of("tokenizer", args.tokenizer, {"efficient": efficient, "vit": vit})
    )
    tokenizer.loss.l1 = 0.5
    tokenizer.loss.perceptual = 0.3
    tokenizer.loss.perceptual_net = "alexnet"
    discriminator = tokenizer.discriminator
    discriminator.model = ConfigDict(
        common.one_of(
            "gan",
            args.gan,
            {
                "patchgan": {"name": "patchgan", "num_layers": 2, "width": 32, "dtype": "float32"},
                "projected": {
                    "name": "projected",
                    "dtype": "float32",
                    "frozen_dtype": "float32",
                    "head_depth": "fixed",
                },
                "none": {"name": "none"},
            },
        )
    )
    # Late, when reconstructions are good, and slowly.
    discriminator.start = 700
    discriminator.ramp = 175
    discriminator.optimizer.b1 = 0.5
    discriminator.optimizer.b2 = 0.9
    if args.gan == "projected":
        # As its authors train it.
        discriminator.optimizer.schedule = "constant"
    tokenizer.batch_size = 16
    tokenizer.steps = 1_050
    tokenizer.optimizer.learning_rate = 1e-3
    tokenizer.optimizer.b2 = 0.99
    tokenizer.optimizer.clip_norm = 1.0
    tokenizer.optimizer.warmup_steps = 50
    tokenizer.eval_every = 525
    tokenizer.checkpoint_every = 175

    block_size, halo = (8, 2) if args.res // args.f >= 32 else (4, 1)
    prior = config.prior
    prior.model = ConfigDict(
        {
            "name": "multigrained",
            "condition_dropout": 0.0,
            "dim": dim,
            "num_layers": layers,
            "num_heads": dim // 32,
            "embed_dim": 64,
            "block_size": block_size,
            "halo": halo,
            "dropout": 0.1,
            "label_smoothing": 0.0,
            "query_blocks_per_image": FieldReference(2, field_type=object),
            "prefix_context": 0.5,  # 0 in the paper
            "halo_mask": "block",  # "query" in the paper
            "frame_shift": 0.1,
            "mask_schedule": "cosine",
            # Few layers are soon compiled, and a step is a tenth faster without.
            "scan": False,
            "remat": False,
            "dtype": "float32",
            "implementation": "xla",
        }
    )
    prior.batch_size = 32
    prior.steps = 780
    prior.optimizer.name = "adamw"
    prior.optimizer.learning_rate = 2e-3
    prior.optimizer.b1 = 0.9
    prior.optimizer.b2 = 0.98
    prior.optimizer.weight_decay = 0.045
    prior.optimizer.clip_norm = 1.0
    prior.optimizer.warmup_steps = 100
    prior.ema_decay = 0.99
    prior.eval_every = 260
    prior.checkpoint_every = 130
    prior.best_metric = "loss_at_0.5"
    prior.use = "best"

    if args.res > 256:
        config.sampling.batch_size = 4
        # Global attention is over the whole image.
        config.sampling.decode_tile = 256 if args.tokenizer == "efficient" else 0
    config.sampling.temperature = 0.85
    config.sampling.choice_temperature = 2.0
    return config
