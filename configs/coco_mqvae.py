r"""MQ-VAE and Stackformer on MS-COCO at 256x256, by captions, full size. Paper 002, section 4.

    python train.py --config=configs/coco_mqvae.py:size=base --workdir=runs/coco_mqvae \
        --config.data.source.data_dir=/data/tfds
    python sample.py --workdir=runs/coco_mqvae --caption="a dog on a beach"

The paper's samples: FID 10.08 (table 5; it does not say of which size, and elsewhere of size=base).

Data: TFDS's `coco_captions`, prepared: `train` of 82,783 images, and `val`, of 5,000; the 30,504 of
`restval` join by `--config.data.source.train_split=train+restval`. An image has five captions, of
which each epoch takes another. They become at most 64 tokens of a byte-level BPE, which is made of
the training captions and saved with the run; longer ones are cut. Arguments: those of
`ffhq_mqvae.py`.

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
    config.data.source = ConfigDict(
        {
            "name": "tfds",
            "dataset": "coco_captions",
            "data_dir": "",
            "train_split": "train",
            "validation_split": "val",
        }
    )
    config.data.crop = "center"
    config.condition = common.caption_condition()
    config.condition.too_long = "cut"
    config.prior.model.condition_dropout = 0.1
    return config
