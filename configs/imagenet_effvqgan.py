r"""Efficient-VQGAN on ImageNet at 256x256, class-conditional, full size. Paper 000, section 4.

    python train.py --config=configs/imagenet_effvqgan.py --workdir=runs/imagenet \
        --config.data.source.data_dir=/data/tfds
    python sample.py --workdir=runs/imagenet --label=207 --acceptance=0.5

The paper trained on 8 A100: the tokenizer 20 epochs at batch 16, the prior 200 epochs. Its numbers:

    argument          what                              table, figure      FID      IS
    f=16              reconstruction                    tables 1, 2       2.34
    f=8               reconstruction                    tables 1, 2       0.95
    f=16              samples, all of them              table 5, fig. 5   9.92   82.20
    f=16              samples, half of them accepted    table 5           6.81  135.84
    tokenizer=vqgan   samples, on VQGAN's tokenizer     table 7          13.67
    tokenizer=vit,f=8 reconstruction by ViT-VQGAN       tables 1, 2       1.55

Data: TFDS's `imagenet2012`, prepared. Arguments: those of `ffhq_effvqgan.py`, whose `block` and `T`
are the ablations of figures 8 and 9; `codebook=plain` is the paper's codebook.

Table 7 takes VQGAN's published tokenizer of ImageNet, which has 16,384 codes (table 1):
`tokenizer=vqgan,codebook=plain`, with its weights by `--config.tokenizer.use_from=...` or trained
here, as `ffhq_effvqgan.py` says. The prior on it has 200,488,704 parameters.

How many parameters the others make:

            tokenizer        prior
    f = 32 58,217,651  184,730,880
    f = 16 43,491,443  184,744,704
    f = 8  10,769,139  184,772,352
    f = 4   2,534,451  184,827,648

The condition is dropped for a tenth of the images, which the paper does not do, so that
classifier-free guidance is there to be tried (`sample.py --guidance=1.5`); the paper's samples are
drawn without. It accepts by ResNet-101, sample.py by EfficientNet-lite1.
"""

from ml_collections import ConfigDict

from configs import effvqgan

TRAIN_IMAGES = 1_281_167


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = effvqgan.efficient_vqgan(
        arg,
        TRAIN_IMAGES,
        tokenizer_epochs=20,
        prior_epochs=200,
        vqgan_codes=16_384,
        vqgan_adversary=0.75,
    )
    config.data.source = ConfigDict({"name": "tfds", "dataset": "imagenet2012", "data_dir": ""})
    config.data.crop = "random"
    config.condition.name = "class"
    config.prior.model.condition_dropout = 0.1
    return config
