r"""MQ-VAE and Stackformer on MS-COCO at 256x256, by captions, full size. Paper 002, section 4.

    python train.py --config=configs/coco_mqvae.py:size=base --workdir=runs/coco_mqvae \
        --config.data.source.data_dir=/data/tfds
    python sample.py --workdir=runs/coco_mqvae --caption="a dog on a beach"

The paper's samples: FID 10.08 (table 5; it does not say of which size, and elsewhere of size=base).

Data: TFDS's `coco_captions`, prepared: an image has five captions, of which each epoch takes
another. They become at most 64 tokens of a byte-level BPE, which is made of the training captions
and saved with the run. Arguments: those of `ffhq_mqvae.py`.

The caption is dropped for a tenth of the images, which the paper does not do, so that
classifier-free guidance is there to be tried (`sample.py --guidance=1.5`).
"""

from ml_collections import ConfigDict

from configs import common, mqvae

TRAINING = mqvae.Training(steps=250_000, batch=32, prior_steps=200_000, prior_batch=64)


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = mqvae.mqvae(common.parse_arg(arg, **mqvae.ARGUMENTS), TRAINING)
    config.data.source = ConfigDict({"name": "tfds", "dataset": "coco_captions", "data_dir": ""})
    config.data.crop = "center"
    config.condition = common.caption_condition()
    config.prior.model.condition_dropout = 0.1
    return config
