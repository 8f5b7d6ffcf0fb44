r"""SeQ-GAN on FFHQ at 256x256, full size. Paper 001, section 4.

    python train.py --config=configs/ffhq_seqgan.py --workdir=runs/ffhq_seqgan \
        --config.data.source.path=/data/ffhq256 --config.tokenizer.loss.semantic_weights=vgg16.pth

The paper's FID:

    argument   what                                   table           FID
               reconstruction after phase 2           table 2        3.12
    prior=nar  samples                                table 3        3.62
    prior=nar  samples, with the decoder of phase 1   figure 8       3.89

It has no number for prior=ar, which overfits these 60,000 images; the checkpoint of the best
held-out loss is the one that samples. Section 4.1 says that phase 1 has 500,000 steps, table 9
300,000, which is taken.

Data: a folder of the 70,000 images at that resolution or a larger one, named so that they sort
(00000.png ...): the first 60,000 train, the last 10,000 validate.

Arguments and the file of VGG16: see `imagenet_seqgan.py`.
"""

from ml_collections import ConfigDict

from configs import common, seqgan


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = seqgan.seqgan(common.parse_arg(arg, **seqgan.ARGUMENTS), seqgan.FFHQ)
    config.data.source = common.sorted_folder(60_000, 70_000)
    config.data.crop = "center"
    return config
