r"""Efficient-VQGAN on FFHQ at 256x256 to 1024x1024, full size. Paper 000, section 4.

    python train.py --config=configs/ffhq_effvqgan.py --workdir=runs/ffhq \
        --config.data.source.path=/data/ffhq256

The paper trained on 8 A100: the tokenizer 50 epochs at batch 16, the prior 200 epochs. Its FID:

    argument          what                               table, figure        FID
    f=16              reconstruction                     table 1             3.38
    f=8               reconstruction                     table 1             2.72
    f=16              samples                            table 3             5.28
    res=1024          samples                            table 4, figure 6  11.81
    tokenizer=vqgan   samples, on VQGAN's tokenizer      table 7              7.5
    tokenizer=vit,f=8 reconstruction by ViT-VQGAN        table 1             3.13

Data: a folder of the 70,000 images at that resolution or a larger one, named so that they sort
(00000.png ...): the first 60,000 train, the last 10,000 validate.

Arguments, as in `--config=...:f=8`:

    f           downsampling factor of the tokenizer, 4, 8, 16 or 32 (16); the paper has 8 and 16
    res         side of the images, 256, 512 or 1024 (256)
    tokenizer   efficient; vqgan, the convolutional one of table 7; or vit, ViT-VQGAN (efficient)
    codebook    ema: codes are moving averages of normalised latents, and dead ones restart; plain:
                the paper's, VQGAN's gradient codebook without any of that, which collapsed to a few
                codes where we tried it (ema)
    remat       recompute activations in the backward pass: true, false or auto, which does so where
                cards of 80 GB may need it: the tokenizer at 1024 pixels, the prior above 16x16
                latents. Eight chips of 16 GB, or one card for the prior, need true (auto)
    block       W_s, side of a query block: 1 (autoregressive), 2, 4, 8 or 16 (8); figures 8 and 9.
                A step predicts as many blocks of an image as have 1,024 positions: on 16x16 latents
                3 of block=1, 10 of block=2. --config.prior.model.query_blocks_per_image=256 and 64
                are all of them, as in the paper
    halo        E_s, how far a window reaches beyond its query block (2)
    T           parallel steps in a block (8); figure 8 has 4, 8, 12, 16, 24 and 32. It is a setting
                of the sampler: `sample.py --steps` has the same effect on a trained run

Table 7 is a prior on VQGAN's tokenizer as it was published: 1,024 codes for FFHQ, 16,384 for
ImageNet, learned by gradient. `tokenizer=vqgan,codebook=plain` is that model, and a workdir with
its weights takes the place of training it:

    python train.py --config=configs/ffhq_effvqgan.py:tokenizer=vqgan,codebook=plain \
        --workdir=runs/table7 --config.tokenizer.use_from=runs/vqgan

Otherwise it is trained here, with VQGAN's own loss (l1, LPIPS, a patch discriminator of weight 0.8,
0.75 for ImageNet) and learning rate; `codebook` says how the codes are learned, as for the other.

How many parameters that makes; the 262,144 numbers of a codebook are among them for codebook=plain
only, since moving averages are not trained:

            tokenizer        prior  tokenizer=vqgan
    f = 32 58,217,651  183,961,344      100,207,491
    f = 16 43,491,443  183,975,168       71,879,555
    f = 8  10,769,139  184,002,816       64,793,475
    f = 4   2,534,451  184,058,112       57,761,667

Where the paper is silent (optimizers, learning rates, batch of the prior, when the adversary
starts) the values are ours, and so is codebook=ema.
"""

from ml_collections import ConfigDict

from configs import common, effvqgan

TRAIN_IMAGES = 60_000


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = effvqgan.efficient_vqgan(arg, TRAIN_IMAGES, tokenizer_epochs=50, prior_epochs=200)
    config.data.source = common.sorted_folder(TRAIN_IMAGES, 70_000)
    config.data.crop = "center"
    return config
