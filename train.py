"""Trains the stages of a config, in order, in one workdir; goes on where it was stopped.

python train.py --config=configs/openmoji_effvqgan.py --workdir=runs/openmoji [--config.key=value
...]
"""

from vqjax.programs import run

if __name__ == "__main__":
    run("train")
