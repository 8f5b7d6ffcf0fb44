r"""MQ-VAE and Stackformer on OpenMoji, by their names: both stages in minutes on a CPU.

    python train.py --config=configs/openmoji_mqvae.py --workdir=runs/mqvae
    python sample.py --workdir=runs/mqvae --caption="red heart"
    python -m vqjax visualize --workdir=runs/mqvae --what=importance

As `coco_mqvae.py`, only smaller. It stands for no table of paper 002. Arguments, as in
`--config=...:mask_ratio=0.5`: those of `folder_mqvae.py`.
"""

from ml_collections import ConfigDict

from configs import common, mqvae


def get_config(arg: str = "") -> ConfigDict:
    """The config, by arguments "key=value,...".

    Raises:
        InputError: unknown argument or value.
    """
    config = mqvae.any_size(arg)
    config.data.source = ConfigDict({"name": "openmoji", "cache_dir": ""})
    config.data.crop = "center"
    config.condition = common.caption_condition()
    # The longest name has 17.
    config.condition.length = 24
    config.prior.model.condition_dropout = 0.1
    return config
