"""Scores of images on all devices: how they are taken, whosever the images are."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vqjax.errors import InputError
from vqjax.evaluation.networks import FeatureNetwork
from vqjax.evaluation.protocol import protocol_hash, surroundings
from vqjax.evaluation.references import Images, Reference, padded, read_reference
from vqjax.evaluation.results import result
from vqjax.evaluation.rows import Columns, Rows, fill, filled
from vqjax.evaluation.scores import Comparison, Scores, Settings, merge
from vqjax.parallel import batch_sharding, make_mesh, replicated
from vqjax.pixels import to_float


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How images are scored, whosever they are.

    Attributes:
        network: whose features are compared.
        settings: of the metrics.
        folder: for what is computed of each image.
        batch_size: images at a time; the devices share them.
        by_class: whether each class gets numbers of its own.
        pixels: "png" rounds what a model makes to 8 bits, "float" does not.
    """

    network: FeatureNetwork
    settings: Settings
    folder: Path
    batch_size: int
    by_class: bool = False
    pixels: Literal["png", "float"] = "png"

    def __post_init__(self) -> None:
        """Checks the batch size."""
        if self.batch_size < 1 or self.batch_size % self.mesh.size:
            raise InputError(
                f"batch_size={self.batch_size}: a multiple of the {self.mesh.size} devices is"
                " needed"
            )

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """All devices, which share each batch."""
        return make_mesh({"data": -1})

    @cached_property
    def network_variables(self) -> Any:
        """The network's weights, on all devices."""
        return jax.device_put(self.network.variables, replicated(self.mesh))

    def place(self, batch: np.ndarray) -> Array:
        """A batch, shared by the devices."""
        return jax.device_put(batch, batch_sharding(self.mesh))

    @cached_property
    def features(self) -> Callable[[np.ndarray], dict[str, Array]]:
        """Features and logits of images, uint8 or float in [-1, 1]."""

        @jax.jit
        def measure(variables: Any, images: Array) -> dict[str, Array]:
            floats = to_float(images) if images.dtype == jnp.uint8 else images
            features, logits = self.network.apply(variables, floats)
            return {"features": features, "logits": logits}

        return lambda images: measure(self.network_variables, self.place(images))

    @property
    def columns(self) -> Columns:
        """Of the table that `features` fills."""
        network = self.network
        shapes = {"features": network.dim, "logits": network.num_logits}
        return {name: ((size,), np.float32) for name, size in shapes.items()}

    def rows(
        self,
        what: str,
        protocol: Mapping[str, Any],
        count: int,
        columns: Columns,
        work: Callable[[Rows], None],
    ) -> Rows:
        """The finished table of an evaluation; `work` does what no earlier process has done."""
        return filled(self.folder / f"{what}-{protocol_hash(protocol)[:10]}", count, columns, work)

    def protocol(self, what: str) -> dict[str, Any]:
        """What all evaluations depend on, but for the settings of the metrics."""
        return {
            "what": what,
            "pixels": self.pixels,
            "features": self.network.protocol,
            "batch_size": self.batch_size,
            "devices": self.mesh.size,
            **surroundings(),
        }

    @property
    def metrics_protocol(self) -> dict[str, Any]:
        """The settings of the metrics, which what is computed of each image does not depend on."""
        return {"metrics": dataclasses.asdict(self.settings)}

    def reference(self, path: Path) -> Reference:
        """A reference that the user names; see `read_reference`."""
        return read_reference(path, self.network, self.features, self.batch_size)

    def comparison(self, reference: Reference) -> Comparison:
        """What scores images against a reference."""
        return Comparison(reference, self.network, self.settings)

    def samples(self, rows: Rows, reference: Reference) -> Scores:
        """The scores of samples, from the table that `features` filled."""
        comparison = self.comparison(reference)
        return merge(
            comparison.distances(rows["features"]),
            comparison.qualities(rows["features"], rows["logits"]),
        )


def score_images(scoring: Scoring, images: Images, reference: Reference) -> dict[str, Any]:
    """Scores samples that are there as files, of whoever made them.

    Raises:
        InputError: features that are not finite.
    """
    protocol = scoring.protocol("images")
    protocol["images"] = {
        "files": images.fingerprint,
        "count": images.count,
        "size": list(images.size),
    }
    batch = scoring.batch_size

    def work(rows: Rows) -> None:
        batches = padded(images.batches(batch, rows.batches), batch)
        fill(rows, batches, scoring.features, math.ceil(images.count / batch), "images")

    rows = scoring.rows("images", protocol, images.count, scoring.columns, work)
    scores = scoring.samples(rows, reference)
    protocol["reference"] = reference.protocol
    theirs = reference.protocol.get("size", protocol["images"]["size"])
    if theirs != protocol["images"]["size"]:
        scores.notes.append(f"the images have {images.size} pixels, the reference {tuple(theirs)}")
    return result(scores, protocol | scoring.metrics_protocol)
