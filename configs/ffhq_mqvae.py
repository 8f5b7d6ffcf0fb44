r"""MQ-VAE and Stackformer on FFHQ at 256x256, full size. Paper 002, section 4.

    python train.py --config=configs/ffhq_mqvae.py --workdir=runs/ffhq_mqvae \
        --config.data.source.path=/data/ffhq256
    python sample.py --workdir=runs/ffhq_mqvae

The paper's numbers, of a mask ratio of 25 % on a latent map of 32x32 (f = 8):

    argument                 what                      table     FID
    size=small               samples                   table 1  6.84
    size=base                samples                   table 1  5.67

Its ablations are on a map of 16x16 (f = 16): FID of the reconstruction, of the samples of
size=small, and the codes in use.

    f=32,mask=none                                  table 6   8.1   13.5   70.02 %
    f=16,mask=none                                  tables 6, 7
                                                              4.46  11.4   63.89 %
    f=16,mask_ratio=0.1                             table 6   4.55   7.81  72.34 %
    f=16                                            table 6   4.79   7.67  78.22 %
    f=16,mask=random                                table 6   6.13  12.21  67.48 %
    f=16,mask_ratio=0.5                             tables 6, 7
                                                              5.31   8.36  84.29 %
    f=16,mask_ratio=0.5,mask=random                 table 6   7.855 15.67  69.04 %
    f=16,mask_ratio=0.75                            table 6   7.62  11.71  87.60 %
    f=16,mask_ratio=0.75,mask=random                table 6  10.58  17.62  70.41 %
    f=16,mask=none,demask=self_attention            table 7   4.17  11.02
    f=16,mask_ratio=0.5,demask=none                 table 7   7.02  10.74
    f=16,mask_ratio=0.5,demask=self_attention       table 7   6.56   9.8
    f=16,mask_ratio=0.5,demask=direction_constrained
                                                    table 7   5.84   8.92

Arguments, as in `--config=...:f=16,mask_ratio=0.5`:

    f           downsampling factor, 4, 8, 16 or 32 (8)
    mask_ratio  cells of the latent map without a code (0.25)
    mask        which these are: adaptive, the least important; random; or none, which is a VQGAN,
                with an autoregressive transformer of the same size (adaptive)
    demask      attention of the module that fills them in: none, self_attention,
                direction_constrained, mask_updating (mask_updating; of mask=none: none)
    size        layers of Stackformer: small has 18 and 6, base 36 and 12 (small)

Millions of parameters, ours and the paper's: Stackformer 305.1 at f = 16 and 307.3 at f = 8 (307),
base 607.4 and 609.6 (607). The tokenizer has 112.6 at f = 16 and 35.2 at f = 8, its codes among
them; the paper's 44.4 fits neither, and its authors' code counts 36.9 at f = 8.

Data: a folder of the 70,000 images at that resolution or a larger one, named so that they sort
(00000.png ...): the first 60,000 train, the last 10,000 validate.

The paper's batches and steps are in a supplement that is not at hand: they are ours.
"""

from ml_collections import ConfigDict

from configs import common, mqvae


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = mqvae.mqvae(common.parse_arg(arg, **mqvae.ARGUMENTS), mqvae.FFHQ)
    config.data.source = common.sorted_folder(60_000, 70_000)
    config.data.crop = "center"
    return config
