"""Feature networks by name. Apart from their class, so that a metric depends on its own alone."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

from vqjax.errors import InputError, did_you_mean
from vqjax.evaluation.feature_networks import FeatureNetwork
from vqjax.evaluation.protocol import digest
from vqjax.features import imagenet
from vqjax.features.efficientnet_lite import INPUT_SIZE, load_efficientnet_lite
from vqjax.features.inception import WEIGHTS, Resize, load_inception

NETWORKS = ("inception", "efficientnet_lite1")


@functools.cache
def build_network(
    name: str = "efficientnet_lite1",
    weights: Path | None = None,
    sha256: str | None = None,
    resize: str = "torch",
) -> FeatureNetwork:
    """A network with its weights.

    Args:
        name: "inception", the 2015 network of all published FIDs, or "efficientnet_lite1", whose
            weights a package brings. (lite0 is what the projected discriminator looks through:
            never score with a network that was trained against.)
        weights: file of Inception's weights.
        sha256: of that file, where it is not the published one.
        resize: how Inception's images become 299x299; see `InceptionV3`.

    Raises:
        InputError: unknown name or resize, no or wrong weights.
    """
    if name == "efficientnet_lite1":
        module, variables = load_efficientnet_lite("lite1")
        side = INPUT_SIZE["lite1"]
        apply = imagenet.at_side(functools.partial(module.apply, method="pooled"), side)
        protocol = {
            "network": "EfficientNet-lite1, mean of the head's 1280 channels",
            "weights": digest(variables),
            "resize": f"bilinear, antialiased, to {side}x{side} (jax.image.resize)",
        }
        modules: tuple[str, ...] = type(module).__module__, imagenet.__name__
        return FeatureNetwork(name, 1280, 1000, apply, variables, protocol, modules)
    if name == "inception":
        if weights is None:
            raise InputError(
                f"the network inception needs its weights: fetch {WEIGHTS.address} and name the"
                " file with --network_weights, or use --network=efficientnet_lite1, whose weights"
                " are there already"
            )
        if resize not in get_args(Resize):
            raise InputError(f"resize {resize!r}: {did_you_mean(resize, get_args(Resize))}")
        inception, inception_variables, file_hash = load_inception(
            weights, cast(Resize, resize), sha256
        )
        forward: Callable[..., Any] = functools.partial(inception.apply, method="pooled")
        protocol = {
            "network": "Inception-v3 of 2015-12-05, pool3, 2048; classes without their bias",
            "weights": digest(inception_variables),
            "weights_file": f"sha256 {file_hash}",
            "resize": resize,
        }
        modules = (type(inception).__module__,)
        return FeatureNetwork(name, 2048, 1008, forward, inception_variables, protocol, modules)
    raise InputError(f"network {name!r}: {did_you_mean(name, NETWORKS)}")
