r"""MQ-VAE and Stackformer on ImageNet at 256x256, by class, full size. Paper 002, section 4.

    python train.py --config=configs/imagenet_mqvae.py:size=base --workdir=runs/imagenet_mqvae \
        --config.data.source.data_dir=/data/tfds
    python sample.py --workdir=runs/imagenet_mqvae --label=207

The paper's samples of size=base: FID 6.04, IS 172.6 (tables 2 and 4), without rejection.

Data: TFDS's `imagenet2012`, prepared. Arguments: those of `ffhq_mqvae.py`.

The condition is dropped for a tenth of the images, which the paper does not do, so that
classifier-free guidance is there to be tried (`sample.py --guidance=1.5`).
"""

from ml_collections import ConfigDict

from configs import common, mqvae

TRAINING = mqvae.Training(steps=500_000, batch=64, prior_steps=1_000_000, prior_batch=128)


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = mqvae.mqvae(common.parse_arg(arg, **mqvae.ARGUMENTS), TRAINING)
    config.data.source = ConfigDict({"name": "tfds", "dataset": "imagenet2012", "data_dir": ""})
    config.data.crop = "random"
    config.condition.name = "class"
    config.prior.model.condition_dropout = 0.1
    return config
