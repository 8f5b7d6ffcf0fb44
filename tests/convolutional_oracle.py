"""Layers of convolutional networks in float64, on maps (b, h, w, c)."""

import numpy as np
import scipy.special


def group_norm(x, params, groups):
    b, h, w, c = x.shape
    y = x.reshape(b, h * w, groups, c // groups)
    y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-6)
    return y.reshape(x.shape) * params["group_norm"]["scale"] + params["group_norm"]["bias"]


def convolution(x, params, before=1, after=1, stride=1):
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, params["kernel"].shape[:2], axis=(1, 2))
    y = np.einsum("bhwcij,ijcd->bhwd", windows[:, ::stride, ::stride], params["kernel"])
    return y + params.get("bias", 0)


def swish(x):
    return x * scipy.special.expit(x)
