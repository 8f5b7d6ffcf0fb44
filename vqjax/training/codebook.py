"""What moves a codebook beside its gradient: dead codes restart, and k-means between steps.

Source: Lancucki et al. 2020, "Robust training of vector quantized bottleneck models", section III;
paper 001, table 5.
"""

import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict

from vqjax import registry
from vqjax.errors import InputError
from vqjax.parallel import to_host
from vqjax.pixels import to_float
from vqjax.quantizers import VectorQuantizer
from vqjax.runs.stages import StageSettings
from vqjax.settings import Range, check_settings, setting
from vqjax.tokenizers import Tokenizer
from vqjax.tokenizers.base import ReplacedRows, tokens_shape
from vqjax.training.kmeans import Clusters, kmeans
from vqjax.training.optimizers import forget_rows, set_rows
from vqjax.training.state import Network

log = logging.getLogger(__name__)

# A codebook of which less is in use has collapsed.
LEAST_USAGE = 0.1


@dataclasses.dataclass(frozen=True)
class KMeansSettings:
    """Settings of the codebook's re-estimation by k-means: `config.<stage>.kmeans`.

    Raises:
        FieldError: a value out of its range.
    """

    every: int = setting(
        0, "steps (an epoch's, say) after which the codebook is re-estimated; 0 for never", Range(0)
    )
    until: int = setting(
        0, "last step after which it may be, so that the decoder can settle; 0 for no end", Range(0)
    )
    images: int = setting(1_024, "whose vectors are clustered, in whole batches", Range(1))
    iterations: int = setting(10, "of Lloyd's algorithm", Range(1))

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_settings(self)


class Reestimation:
    """Clusters the vectors that a tokenizer makes of images, and takes the means for its codes.

    Attributes:
        batches: of images that it takes.
    """

    def __init__(
        self,
        part: str,
        config: Mapping[str, Any] | ConfigDict,
        tokenizer: Tokenizer,
        stage: StageSettings,
        side: int,
    ):
        """Takes the settings, the model, and the sizes of its stage.

        Args:
            part: path of the sub-config, for messages ("tokenizer.kmeans").
            config: the fields of `KMeansSettings`.
            tokenizer: whose codebook it is.
            stage: settings of the stage.
            side: of the images in pixels.

        Raises:
            InputError: an unknown setting, one out of its range, or fewer vectors than codes.
        """
        self._settings = settings = registry.from_fields(part, KMeansSettings, config)
        self._tokenizer = tokenizer
        self._microbatches = stage.microbatches
        self.batches = -(-settings.images // stage.batch_size)
        if settings.every:
            tokens, codes = tokens_shape(tokenizer, side).codes.shape[1], tokenizer.num_codes
            vectors = self.batches * stage.batch_size * tokens
            if vectors < codes:
                raise InputError(
                    f"config.{part}.images={settings.images}: their {vectors} vectors are fewer"
                    f" than the {codes} codes; {-(-codes // tokens)} or more is needed"
                )
        self._latents = jax.jit(self._encode)
        self._join = jax.jit(lambda parts: jnp.concatenate(parts, axis=1))
        self._cluster = jax.jit(self._reestimate, static_argnames="mesh")
        self._replace = jax.jit(self._with_codebook)

    def is_due(self, step: int) -> bool:
        """Whether the codebook is re-estimated after so many steps."""
        every, until = self._settings.every, self._settings.until
        return every > 0 and step > 0 and step % every == 0 and (until == 0 or step <= until)

    def __call__(
        self, network: Network, images: Iterable[UInt8[Array, "b H W 3"]], key: Key[Array, ""]
    ) -> tuple[Network, dict[str, float]]:
        """A network with the codebook of its vectors' means, and how it changed.

        Args:
            network: the tokenizer's, in training.
            images: `batches` batches on the devices.
            key: of the draws.

        Returns:
            The network; of the codebook before and after, "kmeans_distortion_before" and
            "kmeans_distortion" (mean squared distance of a vector to its code; not finite where
            the network is broken), "kmeans_usage_before" and "kmeans_usage" (fraction of the codes
            in use).
        """
        began = time.monotonic()
        variables = network.variables
        mesh = jax.tree.leaves(variables)[0].sharding.mesh
        vectors = self._join([self._latents(variables, batch) for batch in images])
        clusters = self._cluster(variables, vectors, key, mesh=mesh)
        replaced = self._replace(network, clusters)
        shardings = jax.tree.map(lambda x: x.sharding, network)
        ends = [0, -1]
        distortion, used = (to_host(x)[ends] for x in (clusters.distortion, clusters.usage))
        log.info(
            "codebook re-estimated by k-means of %s vectors in %.0f s: mean squared distance"
            " %.4g to %.4g, codes in use %.1f %% to %.1f %%",
            f"{vectors.shape[0] * vectors.shape[1]:,}",
            time.monotonic() - began,
            *distortion,
            *(100 * used),
        )
        metrics = {
            "kmeans_distortion_before": distortion[0],
            "kmeans_distortion": distortion[1],
            "kmeans_usage_before": used[0],
            "kmeans_usage": used[1],
        }
        return jax.device_put(replaced, shardings), {k: float(x) for k, x in metrics.items()}

    def _encode(self, variables: Any, images: UInt8[Array, "b H W 3"]) -> Float[Array, "b n d"]:
        """The vectors of a batch, in microbatches as it is trained on."""

        def encode(part: UInt8[Array, "b H W 3"]) -> Float[Array, "b n d"]:
            return self._tokenizer.apply(variables, to_float(part), method="latents")

        parts = einops.rearrange(images, "(b n) ... -> n b ...", n=self._microbatches)
        return einops.rearrange(jax.lax.map(encode, parts), "n b ... -> (b n) ...")

    def _reestimate(
        self, variables: Any, vectors: Float[Array, "b m d"], key: Key[Array, ""], mesh: Mesh
    ) -> Clusters:
        codes = self._tokenizer.apply(variables, method="codebook")
        on_sphere = self._tokenizer.quantizer.latent_norm == "l2"
        return kmeans(vectors, codes, key, self._settings.iterations, mesh, on_sphere)

    def _with_codebook(self, network: Network, clusters: Clusters) -> Network:
        # The moving averages count the uses of a microbatch.
        uses = clusters.counts / (self.batches * self._microbatches)
        replaced, model_state = self._tokenizer.with_codebook(
            network.model_state, clusters.codes, uses
        )
        network = dataclasses.replace(network, model_state=model_state)
        return network if replaced is None else with_replaced_rows(network, replaced)


def with_replaced_rows(network: Network, replaced: ReplacedRows) -> Network:
    """A network with rows of a parameter replaced.

    They have no past: neither in the optimizer nor in the average of the weights.
    """
    path, rows, vectors = replaced
    params, ema = (
        None if tree is None else set_rows(tree, path, rows, vectors)
        for tree in (network.params, network.ema)
    )
    opt_state = forget_rows(network.opt_state, path, rows)
    return Network(params, opt_state, ema, network.model_state)


def check_restart(part: str, model: Tokenizer, settings: StageSettings, side: int) -> None:
    """Checks that codes do not restart that are used as much as all others.

    Each microbatch counts its own uses.

    Args:
        part: path of the codebook's sub-config, for messages.
        model: the tokenizer.
        settings: of its stage.
        side: of the images in pixels.

    Raises:
        InputError: they would.
    """
    quantizer = model.quantizer
    vectors = tokens_shape(model, side).codes.shape[1] * settings.batch_size
    uses = vectors / settings.microbatches / quantizer.num_codes
    if uses <= quantizer.restart_below:
        raise InputError(
            f"config.{part}.restart_below={quantizer.restart_below}: codes that are all used alike"
            f" occur {uses:.3g} times in a batch or microbatch, so that they would restart all the"
            " time: set a tenth of that, or fewer microbatches"
        )


def warn_of_collapse(
    stage: str, quantizer: VectorQuantizer, counts: Float[Array, "k"], images: int, step: int
) -> None:
    """Says so where hardly any code occurs, and what keeps more of them in use.

    Args:
        stage: name of the tokenizer's stage.
        quantizer: its codebook.
        counts: of each code in held-out images.
        images: how many these are.
        step: finished training steps.
    """
    used, tokens = int(jnp.sum(counts > 0)), int(jnp.sum(counts))
    # Few tokens cannot show many codes.
    if used >= LEAST_USAGE * min(len(counts), tokens):
        return
    kept = {
        "learning=ema": quantizer.learning == "ema",
        "latent_norm=layer": quantizer.latent_norm != "none",
        "restart_below=0.1": quantizer.restart_below > 0,
    }
    missing = ", ".join(name for name, there in kept.items() if not there)
    log.warning(
        "%s: step %d: THE CODEBOOK HAS COLLAPSED: %d of %d codes occur in %d validation images;"
        " train anew with config.%s.model.quantizer: %s",
        *(stage, step, used, len(counts), images, stage),
        f"{missing} (the config argument codebook=ema, where there is one)"
        if missing
        else "a higher restart_below, or with a lower learning rate",
    )
