"""Measuring images on all devices, whosever they are: features of each, then the set's metrics."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from vqjax.errors import InputError
from vqjax.evaluation import references, set_metrics
from vqjax.evaluation.feature_networks import FeatureNetwork
from vqjax.evaluation.protocol import environment, protocol_hash, source_digest
from vqjax.evaluation.references import Images, Reference, padded, read_reference
from vqjax.evaluation.results import Measurements, merge, result
from vqjax.evaluation.rows import Columns, Rows, fill, filled
from vqjax.evaluation.set_metrics import MetricSettings, SetMetrics
from vqjax.parallel import batch_sharding, make_mesh, replicated

# Images in 8 bits or in [-1, 1].
Pixels = UInt8[np.ndarray, "b H W 3"] | Float[np.ndarray, "b H W 3"]


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A way to measure images on all devices.

    Attributes:
        network: whose features are compared.
        settings: of the metrics.
        folder: for the tables of features and the like, a row an image.
        batch_size: images at a time; the devices share them.
        by_class: whether each class gets numbers of its own.
        pixels: "png" rounds the images of a model to 8 bits, "float" does not.

    Raises:
        InputError: a batch size that the devices do not divide.
    """

    network: FeatureNetwork
    settings: MetricSettings
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

    def to_devices(self, batch: Shaped[np.ndarray, "b ..."]) -> Shaped[Array, "b ..."]:
        """A batch, shared by the devices."""
        return jax.device_put(batch, batch_sharding(self.mesh))

    @cached_property
    def features(self) -> Callable[[Pixels], dict[str, Float[Array, "b d"]]]:
        """Features and logits of images, uint8 or float in [-1, 1]."""
        outputs = self.network.jitted_outputs
        return lambda images: outputs(self.network_variables, self.to_devices(images))

    @property
    def feature_columns(self) -> Columns:
        """The columns that `features` fills."""
        network = self.network
        shapes = {"features": network.dim, "logits": network.num_logits}
        return {name: ((size,), np.float32) for name, size in shapes.items()}

    def rows(
        self,
        kind: str,
        protocol: Mapping[str, Any],
        count: int,
        columns: Columns,
        work: Callable[[Rows], None],
    ) -> Rows:
        """The finished table of an evaluation.

        Args:
            kind: of evaluation.
            protocol: everything that the table depends on.
            count: images.
            columns: see `Rows`.
            work: appends the rows that no earlier process has left.
        """
        return filled(self.folder / f"{kind}-{protocol_hash(protocol)[:10]}", count, columns, work)

    def protocol(self, kind: str, *modules: str) -> dict[str, Any]:
        """Everything that rows of an evaluation depend on, whichever images they are of.

        Args:
            kind: of evaluation.
            modules: names of those that make and measure the images, but for the network's.
        """
        return {
            "kind": kind,
            "pixels": self.pixels,
            "features": self.network.protocol,
            "batch_size": self.batch_size,
            "devices": self.mesh.size,
            **environment(references.__name__, *self.network.modules, *modules),
        }

    @property
    def metrics_protocol(self) -> dict[str, Any]:
        """Settings and code of the metrics, which rows do not depend on."""
        code = source_digest(set_metrics.__name__)
        return {"metrics": {**dataclasses.asdict(self.settings), "code": code}}

    def reference(self, path: Path) -> Reference:
        """A reference that the user names; see `read_reference`."""
        return read_reference(path, self.network, self.features, self.batch_size)

    def set_metrics(self, reference: Reference) -> SetMetrics:
        """The metrics of sets of images against a reference."""
        return SetMetrics(reference, self.network, self.settings)

    def sample_metrics(self, rows: Rows, reference: Reference) -> Measurements:
        """The metrics of samples, from the table that `features` filled."""
        metrics = self.set_metrics(reference)
        return merge(
            metrics.distances(rows["features"]),
            metrics.quality(rows["features"], rows["logits"]),
        )


def evaluate_images(evaluator: Evaluator, images: Images, reference: Reference) -> dict[str, Any]:
    """The entry of metrics.json of samples that are there as files, of whoever made them.

    Raises:
        InputError: features that are not finite.
    """
    protocol = evaluator.protocol("images")
    protocol["images"] = {
        "files": images.fingerprint,
        "count": images.count,
        "size": list(images.size),
    }
    batch = evaluator.batch_size

    def work(rows: Rows) -> None:
        batches = padded(images.batches(batch, rows.batches), batch)
        fill(rows, batches, evaluator.features, math.ceil(images.count / batch), "images")

    rows = evaluator.rows("images", protocol, images.count, evaluator.feature_columns, work)
    measurements = evaluator.sample_metrics(rows, reference)
    protocol["reference"] = reference.protocol
    theirs = reference.protocol.get("size", protocol["images"]["size"])
    if theirs != protocol["images"]["size"]:
        measurements.notes.append(
            f"the images have {images.size} pixels, the reference {tuple(theirs)}"
        )
    return result(measurements, protocol | evaluator.metrics_protocol)
