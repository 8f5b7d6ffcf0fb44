"""Images under what a tokenizer holds to be important in them. Source: paper 002, figure 4."""

import matplotlib
import numpy as np
from einops import repeat
from jaxtyping import Bool, Float, Shaped

from vqjax.generation.run import Images


def heat(images: Images, scores: Float[np.ndarray, "n h w"]) -> Images:
    """Images in grey under the colours of scores: red is high and blue is low, in each image.

    Args:
        images: of 8 bits.
        scores: of the regions of a grid that divides the images.
    """
    low, high = (f(scores, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    scaled = (scores - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    colors = matplotlib.colormaps["RdYlBu_r"](scaled)[..., :3]
    grey = np.mean(images, axis=-1, keepdims=True) / 255
    return np.round(255 * (0.35 * grey + 0.65 * _enlarged(colors, images))).astype(np.uint8)


def masked(images: Images, kept: Bool[np.ndarray, "n h w"]) -> Images:
    """Images of which the regions without a code are nearly grey.

    Args:
        images: of 8 bits.
        kept: regions that have one, of a grid that divides the images.
    """
    part = np.where(_enlarged(kept[..., None], images), 1.0, 0.15)
    return np.round(part * images + (1 - part) * 190).astype(np.uint8)


def _enlarged(cells: Shaped[np.ndarray, "n h w c"], images: Images) -> Shaped[np.ndarray, "..."]:
    """The values of cells at the pixels of their regions."""
    factor = images.shape[1] // cells.shape[1]
    return repeat(cells, "n h w c -> n (h y) (w x) c", y=factor, x=factor)
