r"""MQ-VAE and Stackformer on a folder of images, at any resolution, tiny or full size.

    python train.py --config=configs/folder_mqvae.py:res=256,f=16,size=small --workdir=runs/mine \
        --config.data.source.path=/data/mine
    python train.py --config=configs/folder_mqvae.py --workdir=runs/tiny \
        --config.data.source.path=/data/mine

A tenth of the images is held out, by their names' hash; docs/guide.md has other ways to split.
Full size has the training of `ffhq_mqvae.py` (60,000 images): for fewer images fewer steps do,
`--config.prior.steps=...`. Nothing is told of an image; `--config.condition.name=class` tells its
sub-folder, and with `--config.data.source.captions=...` `--config.condition.name=caption` a text.

Arguments, as in `--config=...:res=64,f=8`, besides those of `ffhq_mqvae.py`:

    res         side of the images in pixels (32)
    f           downsampling factor, 4, 8, 16 or 32; 16 and 8 are the paper's (4)
    size        tiny, of both models: minutes on a CPU; small or base: the paper's (tiny)
"""

from ml_collections import ConfigDict

from configs import common, mqvae


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = mqvae.any_size(arg)
    config.data.source = common.folder()
    config.data.source.captions = ""
    config.data.crop = "center"
    return config
