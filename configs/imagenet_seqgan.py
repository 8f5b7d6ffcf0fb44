r"""SeQ-GAN on ImageNet at 256x256, class-conditional, full size. Paper 001, sections 3 and 4.

    python train.py --config=configs/imagenet_seqgan.py --workdir=runs/imagenet_seqgan \
        --config.data.source.data_dir=/data/tfds --config.tokenizer.loss.semantic_weights=vgg16.pth
    python sample.py --workdir=runs/imagenet_seqgan --label=207

Three stages: the tokenizer (phase 1, alpha = 1), its decoder with attention (phase 2, alpha = 0),
and the transformer. The paper's numbers, 50,000 samples without guidance:

    arguments                                              table          FID      IS  usage
                          reconstruction after phase 2     table 2       1.99           100%
    prior=ar              samples                          tables 4, 8   7.55  121.3
    prior=ar,size=large   samples                          table 4       6.25  140.9
    prior=nar             samples                          tables 4, 8   4.99  189.1
    prior=nar,size=large  samples                          table 4       4.55  200.4
    prior=ar              samples, decoder of phase 1      figure 8      7.83
    prior=nar             samples, decoder of phase 1      figure 8      5.31

Observations and ablations have one phase, batches of 64, and 500,000 steps of the transformer
(section 6.1): `phases=1`. FID of the reconstruction, of prior=ar and of prior=nar:

    phases=1,alpha=0,codebook=plain    table 5    4.07  17.19  14.58  usage  43.5%
    phases=1,alpha=0,codebook=fn       table 5    2.93  24.91         usage  99.7%
    phases=1,alpha=0,codebook=kmeans   table 5    3.54  16.84  15.02  usage 100%
    phases=1,alpha=0                   tables 1, 5, 6: the baseline
                                                  3.45  16.97  13.26  usage 100%
    decoder=conv,alpha=0               table 1    3.22  17.19  13.51
    decoder=attention,alpha=0          table 1    2.90  17.42  14.02
    phases=1,perceptual=A              table 6    3.01  15.19  11.78
    phases=1,perceptual=B              table 6    2.93  14.47  11.58
    phases=1,perceptual=C              table 6    2.81  14.08  10.52
    phases=1,perceptual=D              table 6    2.62  13.34   9.56
    phases=1                           table 6    2.77  12.07   8.84
    phases=1,perceptual=E              table 6    4.65  17.88  14.00

(Of size=large, prior=ar: 13.86, with decoder=conv 14.50, with decoder=attention 14.91.)

Arguments, as in `--config=...:prior=ar,size=large`:

    prior       nar: masked, 12 parallel steps (MaskGIT's); ar: autoregressive, 256 steps (nar)
    size        base or large: the width of the transformer, 768 or 1,024 (base)
    alpha       share of semantic layers in phase 1's perceptual loss, 0 to 1 (1.0)
    codebook    how the codes are kept in use: entropy, fn (8,192 factorized and normalised codes),
                kmeans or plain (entropy)
    perceptual  the layers that are the semantic ones: semantic, low, A, B, C, D or E (semantic)
    decoder     base; conv and attention are the larger ones of table 1, which are trained together
                with encoder and codebook, in one phase (base)
    phases      2, or 1 for the ablations' setting (2)

Millions of parameters, ours and the paper's: tokenizer 54.52 (54.5), after phase 2 57.94 (57.9),
decoder=conv 69.86 (70.0), decoder=attention 61.36 (61.4); transformer 172 (172), large 305 (305).

Data: TFDS's `imagenet2012`, prepared. VGG16's logits are those of the network with its linear
layers, a file whose address the message says that comes without it. EfficientNet-lite0's come with
a package: `--config.tokenizer.loss.semantic_logits=efficientnet_lite0`.

The condition is dropped for a tenth of the images, which the paper does not do, so that
classifier-free guidance is there to be tried (`sample.py --guidance=1.5`).

Where the paper is silent the values are ours: how the adversary joins, the warm-up of the
transformer's rate, when weights are saved, and which of them are used. The soft usage whose entropy
counts is that at a temperature of 0.01, where the paper's formula has 1: with that, few codes are
enough to make it look even (docs/reproduction.md).
"""

from ml_collections import ConfigDict

from configs import common, seqgan

TRAINING = seqgan.Training(
    images=1_281_167,
    batch=256,
    steps=500_000,
    decoder_batch=128,
    prior_batch=256,
    prior_steps=1_500_000,
    top_p=0.92,
    temperature=0.45,
    single_batch=64,
)


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = seqgan.seqgan(common.parse_arg(arg, **seqgan.ARGUMENTS), TRAINING)
    config.data.source = ConfigDict({"name": "tfds", "dataset": "imagenet2012", "data_dir": ""})
    config.data.crop = "random"
    config.condition.name = "class"
    config.prior.model.condition_dropout = 0.1
    return config
