r"""SeQ-GAN on LSUN's churches, cats or bedrooms at 256x256, full size. Paper 001, section 4.

    python train.py --config=configs/lsun_seqgan.py:set=church --workdir=runs/church_seqgan \
        --config.data.source.data_dir=/data/tfds --config.tokenizer.init_from=runs/imagenet_seqgan \
        --config.tokenizer.loss.semantic_weights=vgg16.pth

Phase 1 starts from the tokenizer of an ImageNet run (`imagenet_seqgan.py`, in
runs/imagenet_seqgan if nothing else is said), and goes once over the images. The paper's FID of
samples, and in brackets with the decoder of phase 1 (table 3, figure 8):

    arguments                    FID
    set=church,prior=ar    2.45 (3.49)
    set=church,prior=nar   2.25 (3.41)
    set=cat,prior=ar       3.61 (4.73)
    set=cat,prior=nar      4.60 (5.22)
    set=bedroom,prior=ar   1.44 (2.15)
    set=bedroom,prior=nar  2.05 (2.88)

Data: TFDS's `lsun/church_outdoor`, `lsun/cat` or `lsun/bedroom`, prepared. The last 2,048 images of
the training split are held out, since LSUN has no validation images to speak of; the paper trains
on all.

Arguments: `set`, which is church, cat or bedroom (church), and those of `imagenet_seqgan.py`.
"""

from ml_collections import ConfigDict

from configs import common, seqgan

# What the argument `set` names: TFDS's data set, and the training on it.
SETS = {
    "church": (
        "lsun/church_outdoor",
        seqgan.Training(126_227, 32, 4_000, decoder_batch=32, prior_batch=64, finetunes=True),
    ),
    "cat": (
        "lsun/cat",
        seqgan.Training(1_657_266, 64, 26_000, decoder_batch=64, prior_batch=256, finetunes=True),
    ),
    "bedroom": (
        "lsun/bedroom",
        seqgan.Training(3_033_042, 64, 48_000, decoder_batch=64, prior_batch=256, finetunes=True),
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    args = common.parse_arg(arg, set="church", **seqgan.ARGUMENTS)
    dataset, training = common.one_of("set", args.set, SETS)
    config = seqgan.seqgan(args, training)
    config.data.source = ConfigDict(
        {
            "name": "tfds",
            "dataset": dataset,
            "data_dir": "",
            "train_split": "train[:-2048]",
            "validation_split": "train[-2048:]",
        }
    )
    config.data.crop = "center"
    config.tokenizer.init_from = "runs/imagenet_seqgan"
    return config
