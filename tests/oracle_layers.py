"""What float64 oracles of trained PyTorch networks are made of."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


class OracleLayers:
    """Layers with PyTorch's layouts and unfolded BatchNorms, and random weights for them.

    Args:
        state: weights under the file's names; those that are missing are drawn.
        epsilon: of the BatchNorms.
    """

    def __init__(self, state, epsilon):
        self.state = {} if state is None else state
        self.rng = np.random.default_rng(0)
        self.epsilon = epsilon

    def weight(self, name, draw):
        if name not in self.state:
            self.state[name] = draw().astype(np.float32)
        return self.state[name].astype(np.float64)

    def normed(self, x, names, features, size=(1, 1), stride=1, same=True):
        """A convolution of x (channels, height, width) and its BatchNorm, of these names."""
        name, norm = names
        height, width = size
        # Of a variance of 2 by the fan-in.
        bound = np.sqrt(6 / (len(x) * height * width))
        weight = self.weight(
            f"{name}.weight",
            lambda: self.rng.uniform(-bound, bound, (features, len(x), *size)),
        )
        if same:
            x = np.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2))
        windows = sliding_window_view(x, size, axis=(1, 2))[:, ::stride, ::stride]
        # A product of matrices for each place under the kernel: einsum would lay out every window.
        x = sum(
            np.tensordot(weight[:, :, i, j], windows[..., i, j], 1)
            for i in range(height)
            for j in range(width)
        )
        scale, shift, mean, variance = (
            self.weight(f"{norm}.{k}", lambda a=a, b=b: self.rng.uniform(a, b, features))
            for k, a, b in (
                ("weight", 0.5, 1.5),
                ("bias", -0.3, 0.3),
                ("running_mean", -0.3, 0.3),
                ("running_var", 0.05, 2.0),
            )
        )
        column = (slice(None), None, None)
        x = (x - mean[column]) / np.sqrt(variance + self.epsilon)[column]
        return x * scale[column] + shift[column]
