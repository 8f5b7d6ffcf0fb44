r"""Efficient-VQGAN on FFHQ at 256x256, full size. Paper 000, sections 4.1-4.2, tables 1-3.

    python train.py --config=configs/ffhq_effvqgan.py --workdir=runs/ffhq \
        --config.data.source.path=/data/ffhq256

The paper reports on FFHQ: reconstruction FID 3.38 (f = 16) and 2.72 (f = 8); FID of samples 5.28 (f
= 16), with the adversarial loss of Eq. 1. Trained there on 8 A100: tokenizer 50 epochs at batch 16,
prior 200 epochs.

Data: a folder of the 70,000 images at 256x256 or larger, named so that they sort (00000.png ...):
the first 60,000 train, the last 10,000 validate.

Arguments, as in `--config=...:f=8`:

    f       downsampling factor of the tokenizer, 16 or 8 (16)

How many parameters that makes:

            tokenizer        prior
    f = 16 43,753,587  183,969,024
    f = 8  11,031,283  183,996,672

Where the paper is silent (optimizers, learning rates, batch of the prior) the values are ours.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common

TRAIN_IMAGES = 60_000


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    args = common.parse_arg(arg, f=16)
    widths, depths = common.one_of(
        "f", args.f, {16: ((128, 256, 512), (2, 2, 6)), 8: ((128, 256), (2, 6))}
    )
    config = common.get_config()
    config.data.source = ConfigDict(
        {
            "name": "folder",
            "path": "",
            "train_range": "0:60000",
            "validation_range": "60000:70000",
        }
    )
    config.data.resolution = 256
    config.data.crop = "center"
    config.data.workers = 8

    tokenizer = config.tokenizer
    tokenizer.model = ConfigDict(
        {
            "name": "efficient_vqgan",
            "patch_size": 4,
            "widths": widths,
            "depths": depths,
            "head_dim": 32,
            "window": 8,
            "mlp_ratio": 4,
            "remat": False,
            "dtype": "bfloat16",
            "quantizer": {
                "num_codes": 1024,
                "code_dim": 256,
                "learning": "gradient",
                "beta": 0.25,
                "decay": 0.99,
                "latent_norm": "none",
                "restart_below": 0.0,
            },
        }
    )
    tokenizer.batch_size = 16
    tokenizer.steps = 50 * TRAIN_IMAGES // tokenizer.batch_size
    tokenizer.optimizer.learning_rate = 1e-4
    tokenizer.optimizer.b1 = 0.5
    tokenizer.optimizer.b2 = 0.9
    tokenizer.optimizer.warmup_steps = 5_000

    prior = config.prior
    prior.model = ConfigDict(
        {
            "name": "multigrained",
            "conditional": False,
            "dim": 768,
            "num_layers": 24,
            "num_heads": 16,
            "embed_dim": 256,
            "block_size": 8,
            "halo": 2,
            "dropout": 0.1,
            "label_smoothing": 0.1,
            "query_blocks_per_image": placeholder(int),
            "scan": True,
            "remat": True,
            "dtype": "bfloat16",
        }
    )
    prior.batch_size = 256
    prior.steps = 200 * TRAIN_IMAGES // prior.batch_size
    prior.optimizer.name = "adamw"
    prior.optimizer.learning_rate = 1e-4
    prior.optimizer.b1 = 0.9
    prior.optimizer.b2 = 0.96
    prior.optimizer.weight_decay = 0.045
    prior.optimizer.warmup_steps = 5_000
    prior.use = "best"
    return config
