"""Metrics of images and their reconstructions: PSNR, SSIM, LPIPS and features, a row an image."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vqjax import quantizers
from vqjax.evaluation.feature_networks import FeatureNetwork, as_saved
from vqjax.evaluation.metrics.ssim import WINDOW, ssim
from vqjax.evaluation.results import Measurements
from vqjax.evaluation.rows import Columns, Rows
from vqjax.losses.perceptual import LPIPS, MIN_SIZE, Net
from vqjax.losses.pixelwise import psnr
from vqjax.pixels import to_float
from vqjax.tokenizers import Tokenizer
from vqjax.tokenizers.base import tokens_shape
from vqjax.tokens import Tokens

# Codes that are counted at a time.
_CHUNK = 4096


def columns(
    tokenizer: Tokenizer, network: FeatureNetwork, lpips: LPIPS | None, resolution: int
) -> Columns:
    """The columns that `measurer` fills for each image, and that of its class."""
    tokens = tokens_shape(tokenizer, resolution).codes.shape[1]
    numbers = ["PSNR", "l1", "l2"]
    numbers += ["SSIM"] if resolution >= WINDOW else []
    numbers += [f"LPIPS-{lpips.net}"] if lpips else []
    return {
        **dict.fromkeys(numbers, ((), np.float32)),
        "codes": ((tokens,), np.int32),
        "positions": ((tokens,), np.int32),
        "features": ((network.dim,), np.float32),
        "original_features": ((network.dim,), np.float32),
        "label": ((), np.int32),
    }


def metric_lpips(trained_with: Collection[str], resolution: int) -> LPIPS | None:
    """LPIPS on a trunk that the tokenizer was not trained with; None for too small images.

    Args:
        trained_with: trunks of the perceptual losses of its stages; None is left of both.
        resolution: side of the images in pixels.
    """
    nets: tuple[Net, ...] = ("alexnet", "vgg16")
    left = [net for net in nets if net not in trained_with]
    return LPIPS(left[0]) if left and resolution >= MIN_SIZE else None


def measurer(
    tokenizer: Tokenizer,
    network: FeatureNetwork,
    lpips: LPIPS | None,
    pixels: Literal["png", "float"],
) -> Callable[[Mapping[str, Any], UInt8[Array, "b H W 3"]], dict[str, Array]]:
    """A function of variables and images that measures each image and its reconstruction.

    Args:
        tokenizer: that reconstructs.
        network: for the features of both.
        lpips: perceptual distance, if any.
        pixels: "png" rounds the reconstruction to 8 bits first.

    Returns:
        A pure function; its variables are {"tokenizer", "network", "lpips"}.
    """
    apply: Callable[..., Any] = tokenizer.apply

    def measure(variables: Mapping[str, Any], images: UInt8[Array, "b H W 3"]) -> dict[str, Array]:
        x = to_float(images)
        y, tokens, _, _ = apply(variables["tokenizer"], x, train=False)
        y = as_saved(y, pixels)
        rows = {
            "PSNR": psnr(x, y),
            "l1": jnp.mean(jnp.abs(x - y), axis=(1, 2, 3)),
            "l2": jnp.mean((x - y) ** 2, axis=(1, 2, 3)),
            "codes": tokens.codes,
            "positions": tokens.positions,
            "features": network.apply(variables["network"], y)[0],
            "original_features": network.apply(variables["network"], x)[0],
        }
        if min(x.shape[1:3]) >= WINDOW:
            rows["SSIM"] = ssim(x, y)
        if lpips:
            # By default a float32 product has fewer digits on a TPU, and on some GPUs.
            with jax.default_matmul_precision("float32"):
                distance: Any = lpips.apply(variables["lpips"], y, x)
            rows[f"LPIPS-{lpips.net}"] = distance
        return rows

    return measure


def summary(
    rows: Rows, num_codes: int, grid: tuple[int, int]
) -> tuple[Measurements, dict[str, Float[np.ndarray, " n"]]]:
    """Means over the images with their standard errors, and the codebook's use over all of them.

    Args:
        rows: with the columns of `columns`.
        num_codes: size of the codebook.
        grid: (h, w) of the tokens.

    Returns:
        The measurements, and the metrics of each image that they are means of.
    """
    found = Measurements()
    each = {
        name: np.asarray(rows[name], np.float64)
        for name in rows.columns
        if name not in ("codes", "positions", "features", "original_features", "label")
    }
    for name, values in each.items():
        found.metrics[name] = float(np.mean(values))
        if len(values) > 1:
            found.spread[name] = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    counts = np.zeros(num_codes)
    for start in range(0, rows.count, _CHUNK):
        part = slice(start, start + _CHUNK)
        codes, positions = (jnp.asarray(rows[name][part]) for name in ("codes", "positions"))
        tokens = Tokens(codes, positions, grid)
        counts += np.asarray(quantizers.count_codes(tokens.codes, num_codes, tokens.present))
    total = jnp.asarray(counts, jnp.float32)
    found.metrics["codebook usage"] = float(quantizers.usage(total))
    found.metrics["codebook perplexity"] = float(quantizers.perplexity(total))
    return found, each
