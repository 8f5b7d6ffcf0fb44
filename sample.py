"""Samples images from a finished run, or edits an image with it.

python sample.py --workdir=runs/openmoji [--num_images=64 --temperature=0.9 --label=3 ...]
python sample.py --workdir=... --edit=inpaint --image=a.png --mask=hole.png
python sample.py --workdir=... --edit=outpaint --image=a.png --left=128 --right=128
python sample.py --workdir=... --edit=replace --image=a.png --box=32,32,96,96 --label=cat
"""

from vqjax.programs import run

if __name__ == "__main__":
    run("sample")
