r"""Efficient-VQGAN on CelebA-HQ at 256x256, full size. Paper 000, section 4, table 3.

    python train.py --config=configs/celebahq_effvqgan.py --workdir=runs/celebahq \
        --config.data.source.path=/data/celebahq256

The paper reports FID 7.81 of samples (f = 16). Trained there on 8 A100: tokenizer 50 epochs at
batch 16, prior 200 epochs.

Data: a folder of the 30,000 images, named so that they sort; the paper's split is not given, so the
first 27,000 train and the last 3,000 validate. Arguments and numbers of parameters: those of
`ffhq_effvqgan.py`; `codebook=plain` is the paper's codebook.
"""

from ml_collections import ConfigDict

from configs import common, effvqgan

TRAIN_IMAGES = 27_000


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = effvqgan.efficient_vqgan(arg, TRAIN_IMAGES, tokenizer_epochs=50, prior_epochs=200)
    config.data.source = common.sorted_folder(TRAIN_IMAGES, 30_000)
    config.data.crop = "center"
    return config
