r"""SeQ-GAN on OpenMoji: all three stages in minutes on a CPU, nothing left out.

    python train.py --config=configs/openmoji_seqgan.py --workdir=runs/seqgan
    python sample.py --workdir=runs/seqgan
    python -m vqjax visualize --workdir=runs/seqgan

The tokenizer, its decoder with attention and the autoregressive transformer, as in
`imagenet_seqgan.py`, only smaller. It stands for no table of paper 001; what it reaches is in
docs/performance.md. Arguments, as in `--config=...:prior=nar`: those of `folder_seqgan.py`.
"""

from ml_collections import ConfigDict

from configs import seqgan


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = seqgan.any_size(arg)
    config.data.source = ConfigDict({"name": "openmoji", "cache_dir": ""})
    config.data.crop = "center"
    return config
