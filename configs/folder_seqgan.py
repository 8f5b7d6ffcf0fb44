r"""SeQ-GAN on a folder of images, at any resolution, small or full size.

    python train.py --config=configs/folder_seqgan.py:res=256,f=16,size=base --workdir=runs/mine \
        --config.data.source.path=/data/mine --config.tokenizer.loss.semantic_weights=vgg16.pth
    python train.py --config=configs/folder_seqgan.py --workdir=runs/small \
        --config.data.source.path=/data/mine

Classes are the sub-folders, and the prior is told of them; `--config.condition.name=none` is
without. A tenth of the images is held out, by their names' hash; docs/guide.md has other ways to
split. Full size has the training that paper 001 has for FFHQ (60,000 images): for fewer images
fewer steps do, `--config.prior.steps=...`. From the weights of another run, also of other images,
classes or resolution:

    ... --config.tokenizer.init_from=runs/imagenet_seqgan --config.prior.init_from=...

docs/reproduction.md has what `size=small` reaches on 50,000 photographs of 32x32.

Arguments, as in `--config=...:res=64,f=8`, besides those of `imagenet_seqgan.py`:

    res         side of the images in pixels (32)
    f           downsampling factor, 4, 8 or 16; 16 is the paper's (4)
    size        small, of both models: minutes on a CPU; base or large: the paper's (small)
    prior       ar or nar (ar)
"""

from ml_collections import ConfigDict

from configs import common, seqgan


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = seqgan.any_size(arg)
    config.data.source = common.folder()
    config.data.crop = "center"
    config.condition.name = "class"
    config.prior.model.condition_dropout = 0.1
    return config
