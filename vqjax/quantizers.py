"""Vector quantization: nearest code, straight-through gradient, two ways to learn a codebook.

Source: van den Oord et al. 2017 (VQ-VAE), Eq. 3 and appendix A.1; paper 000, section 3.1; the
entropy of the usage: paper 001, section 3.4.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from vqjax.settings import Range, check_settings, setting

# The collection of a moving-average codebook, and of the statistics of any.
STATE = "quantizer"

# Entries of a matrix of distances that are in memory at a time, where there are parts: 64 MiB.
_DISTANCES = 2**24


def nearest_code(z: Float[Array, "n d"], codebook: Float[Array, "k d"]) -> Int[Array, "n"]:
    """Index of the code nearest to each vector in Euclidean distance, computed in float32.

    Source: VQ-VAE, Eq. 1.
    """
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    # |z|^2 is the same for all codes.
    return jnp.argmin(_distance_beyond_norm(z, codebook), axis=1).astype(jnp.int32)


def _distance_beyond_norm(
    z: Float[Array, "*n d"], codebook: Float[Array, "k d"]
) -> Float[Array, "*n k"]:
    """|z - e|^2 - |z|^2 of every vector and code, all float32."""
    # Accelerators round float32 products to bfloat16 unless told not to.
    dot = jnp.einsum("...d,kd->...k", z, codebook, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(codebook**2, axis=1) - 2.0 * dot


def straight_through(z: Float[Array, "*b"], z_q: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The value of `z_q` with the gradient of `z`."""
    return z + jax.lax.stop_gradient(z_q - z)


def codebook_loss(z: Float[Array, "*b"], z_q: Float[Array, "*b"]) -> Float[Array, ""]:
    """Mean of (sg(z) - e)^2: moves the codes only. Source: VQ-VAE, Eq. 3, second term."""
    return jnp.mean((jax.lax.stop_gradient(z) - z_q) ** 2)


def commitment_loss(z: Float[Array, "*b"], z_q: Float[Array, "*b"]) -> Float[Array, ""]:
    """Mean of (z - sg(e))^2: moves the encoder only. Source: VQ-VAE, Eq. 3, third term."""
    return jnp.mean((z - jax.lax.stop_gradient(z_q)) ** 2)


def l2_normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Vectors of length one; a zero vector stays zero, with a zero gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12))


def count_codes(
    codes: Int[Array | np.ndarray, "*n"],
    num_codes: int,
    valid: Bool[Array | np.ndarray, "..."] | None = None,
) -> Float[Array, "k"]:
    """Counts of each code.

    Args:
        codes: of any shape, [0, num_codes).
        num_codes: K, size of the codebook.
        valid: which codes count, or which rows of codes along the leading axes [all].
    """
    codes = jnp.asarray(codes)
    if valid is not None:
        # Beyond the codebook, where nothing is counted.
        rows = jnp.reshape(valid, (*valid.shape, *(1,) * (codes.ndim - valid.ndim)))
        codes = jnp.where(rows, codes, num_codes)
    return jnp.bincount(codes.reshape(-1), length=num_codes).astype(jnp.float32)


def perplexity(counts: Float[Array, "k"]) -> Float[Array, ""]:
    """Exp of the entropy of the codes' frequencies: 1 (one code used) to k (all used alike)."""
    return jnp.exp(entropy(counts / jnp.maximum(jnp.sum(counts), 1.0)))


def entropy(p: Float[Array, "k"]) -> Float[Array, ""]:
    """Of a distribution, in nats, [0, log k]; the gradient is finite at a probability of 0 too."""
    return -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.finfo(jnp.float32).tiny)))


def soft_usage(
    z: Float[Array, "b *n d"],
    codebook: Float[Array, "k d"],
    temperature: float = 1.0,
    parts: int | None = None,
) -> Float[Array, "k"]:
    """How much each code is used by a batch, with gradients: a distribution over the codes.

    A vector uses codes by softmax(-distance / temperature), of the Euclidean distance; the mean is
    over all vectors, on all devices. Of the distances between vectors and codes a part is in memory
    at a time, and the backward pass computes each again.

    Args:
        z: vectors, float32; only the first axis may be split over devices.
        codebook: the codes, float32.
        temperature: above 0.
        parts: how many, a divisor of the number of vectors along the middle axes; None chooses it
            by the size of a part.

    Source: paper 001, section 3.4.
    """
    vectors, num_codes = z.size // z.shape[-1], len(codebook)
    cells = vectors // len(z)
    if parts is None:
        parts = distance_parts(len(z), cells, num_codes)

    @jax.checkpoint
    def add(
        total: Float[Array, "k"], some: Float[Array, "b m d"]
    ) -> tuple[Float[Array, "k"], None]:
        norm = jnp.sum(some**2, axis=-1, keepdims=True)
        squared = norm + _distance_beyond_norm(some, codebook)
        # The slope of the root has no bound at 0, where rounding decides what is left.
        distance = jnp.sqrt(jnp.maximum(squared, 1e-6))
        return total + jnp.sum(jax.nn.softmax(-distance / temperature), axis=(0, 1)), None

    # Each part has some vectors of every device.
    split = jnp.moveaxis(z.reshape(len(z), parts, -1, z.shape[-1]), 1, 0)
    total, _ = jax.lax.scan(add, jnp.zeros(num_codes), split)
    return total / vectors


def distance_parts(rows: int, vectors: int, num_codes: int) -> int:
    """In how many parts `rows` times `vectors` are compared with all codes: a divisor of `vectors`.

    They are as few as keep a part's distances from taking much memory.
    """
    enough = min(-(-rows * vectors * num_codes // _DISTANCES), vectors)
    return next(n for n in range(enough, vectors + 1) if vectors % n == 0)


def usage(counts: Float[Array, "k"]) -> Float[Array, ""]:
    """Fraction of the codes that occur at all, [0, 1]."""
    return jnp.mean(counts > 0)


class VectorQuantizer(nn.Module):
    """A codebook and its use.

    By learning="gradient" the codes follow the codebook loss; by "ema" each is the moving average
    of the vectors assigned to it. By latent_norm="none" a vector is compared with the codes as it
    is, by "layer" after a LayerNorm without parameters, by "l2" on the unit sphere, on which the
    codes are too (ViT-VQGAN). A code that falls out of use is dead, and restarts at a vector of the
    batch: a moving average at once, and a code that is a parameter after the step, as noted in the
    state (`Tokenizer.replaced_codes`).

    Against codes out of use there is also the entropy of the codes' soft usage (`soft_usage`). The
    paper adds gamma times the entropy to the loss, and wants a smoother usage; what makes it
    smoother is to subtract that, which is done here.
    """

    num_codes: int = setting(1024, "K, codes in the codebook", Range(1))
    code_dim: int = setting(256, "width of a code", Range(1))
    learning: Literal["gradient", "ema"] = setting("gradient", "how the codes are learned")
    beta: float = setting(0.25, "weight of the commitment loss", Range(0))
    decay: float = setting(0.99, "of the moving averages", Range(0, 1))
    latent_norm: Literal["none", "layer", "l2"] = setting(
        "none", "what is done to a vector before the search"
    )
    init_scale: float = setting(
        0.0,
        "codes start uniform in [-init_scale, init_scale]; 0 for 1 / K, or 1 where vectors are"
        " normalized",
        Range(0),
    )
    restart_below: float = setting(
        0.0, "uses per batch (moving average) below which a code is dead; 0 for none", Range(0)
    )
    entropy: float = setting(
        0.0,
        "gamma, weight of the entropy of the codes' soft usage, which is to grow (0.01 in SeQ-GAN);"
        " 0 for none",
        Range(0),
    )
    entropy_temperature: float = setting(
        0.01,
        "of the softmax over codes that the soft usage is the mean of (1 in SeQ-GAN, where it kept"
        " few codes in use when we tried it)",
        Range(0, above=True),
    )

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            FieldError: a value out of its range.
        """
        check_settings(self)
        super().__post_init__()

    @property
    def notes_dead_codes(self) -> bool:
        """Whether its state says, after a forward pass in training, which codes are to restart."""
        return self.learning == "gradient" and self.restart_below > 0

    def setup(self) -> None:
        """Declares the codebook: a parameter, or state where it is a moving average."""
        shape = (self.num_codes, self.code_dim)
        # At the scale of what they shall represent; VQGAN's where that scale is not known.
        scale = self.init_scale or (1.0 / self.num_codes if self.latent_norm == "none" else 1.0)

        def init_codes(key: Array) -> Array:
            return scale * jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

        if self.learning == "gradient":
            self.codebook = self.param("codebook", init_codes)
            if self.notes_dead_codes:
                self.code_count = self.variable(STATE, "code_count", jnp.ones, (self.num_codes,))
                self.dead = self.variable(STATE, "dead", jnp.zeros, (self.num_codes,), bool)
                self.restart_at = self.variable(STATE, "restart_at", jnp.zeros, shape)
        else:
            self.code_sum = self.variable(
                STATE, "code_sum", lambda: init_codes(self.make_rng("params"))
            )
            self.started = self.variable(STATE, "started", lambda: jnp.zeros((), bool))
            self.code_count = self.variable(STATE, "code_count", jnp.ones, (self.num_codes,))

    def codes(self) -> Float[Array, "k d"]:
        """The codebook as it is compared with the latents."""
        if self.learning == "gradient":
            codebook = self.codebook
        else:
            codebook = self.code_sum.value / self.code_count.value[:, None]
        return l2_normalize(codebook) if self.latent_norm == "l2" else codebook

    def state_of(self, codes: Float[Array, "k d"], uses: Float[Array, "k"]) -> dict[str, Array]:
        """Its state with another codebook; {} where it has none.

        Args:
            codes: the codebook.
            uses: of each code by a batch, as far as is known.
        """
        # As those that restart, to have time to find some.
        count = jnp.maximum(uses, self._fresh_count)
        if self.learning == "ema":
            return {
                "code_sum": codes * count[:, None],
                "code_count": count,
                "started": jnp.ones((), bool),
            }
        if self.notes_dead_codes:
            dead = jnp.zeros(self.num_codes, bool)
            return {"code_count": count, "dead": dead, "restart_at": jnp.zeros_like(codes)}
        return {}

    def compared(self, z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Vectors as they are compared with the codes: normalized by `latent_norm`, float32."""
        z = z.astype(jnp.float32)
        if self.latent_norm == "layer":
            return nn.standardize(z, axis=-1)
        return l2_normalize(z) if self.latent_norm == "l2" else z

    def embed(self, codes: Int[Array, "*n"]) -> Float[Array, "*n d"]:
        """The vectors of given codes, [0, num_codes)."""
        return self.codes()[codes]

    def __call__(
        self, z: Float[Array, "*b d"], train: bool = False
    ) -> tuple[
        Float[Array, "*b d"], Int[Array, "*b"], Float[Array, ""], dict[str, Float[Array, ""]]
    ]:
        """Replaces each vector by its nearest code.

        In training the collection "quantizer" has to be mutable, and a codebook that has state
        draws from the rng stream "restart". All statistics are of the whole batch, on all devices.

        Returns:
            The quantized vectors, with the straight-through gradient, in the dtype of `z`; their
            codes; the loss (codebook loss + beta * commitment loss - gamma * entropy; without the
            first with moving averages); and a dict with "commitment_loss" (unweighted),
            "batch_perplexity" and, where the entropy has a weight, its exp, "soft_perplexity".
        """
        dtype = z.dtype
        z = self.compared(z)
        flat = z.reshape(-1, self.code_dim)
        training = train and not self.is_initializing()
        if training and self.learning == "ema":
            self._start(flat)

        codebook = self.codes()
        codes = nearest_code(jax.lax.stop_gradient(flat), jax.lax.stop_gradient(codebook))
        z_q = codebook[codes].reshape(z.shape)
        codes = codes.reshape(z.shape[:-1])

        commitment = commitment_loss(z, z_q)
        loss = self.beta * commitment
        if self.learning == "gradient":
            loss = loss + codebook_loss(z, z_q)
        counts = count_codes(codes, self.num_codes)
        if training and self.learning == "ema":
            self._move_averages(jax.lax.stop_gradient(flat), codes.reshape(-1), counts)
        elif training and self.notes_dead_codes:
            self._note_dead_codes(flat, counts)
        metrics = {"commitment_loss": commitment, "batch_perplexity": perplexity(counts)}
        if self.entropy > 0:
            soft = entropy(soft_usage(z, codebook, self.entropy_temperature))
            loss = loss - self.entropy * soft
            metrics["soft_perplexity"] = jnp.exp(soft)
        return straight_through(z, z_q).astype(dtype), codes, loss, metrics

    def _draw(self, flat: Float[Array, "n d"]) -> Float[Array, "k d"]:
        """A vector of the batch for every code."""
        index = jax.random.randint(self.make_rng("restart"), (self.num_codes,), 0, flat.shape[0])
        return jax.lax.stop_gradient(flat)[index]

    def _start(self, flat: Float[Array, "n d"]) -> None:
        """Puts a moving-average codebook on vectors of the first batch."""
        started = self.started.value
        self.code_sum.value = jnp.where(started, self.code_sum.value, self._draw(flat))
        self.started.value = jnp.ones((), bool)

    def _move_averages(
        self, flat: Float[Array, "n d"], codes: Int[Array, "n"], counts: Float[Array, "k"]
    ) -> None:
        """Moves the averages and replaces dead codes."""
        # incremental_update(a, b, s) is s a + (1 - s) b: of the average the decay stays.
        count = optax.incremental_update(self.code_count.value, counts, self.decay)
        # A code out of use keeps its value, but its sum and count would fade to 0 / 0.
        faded = count < 1e-6
        count = jnp.where(faded, self.code_count.value, count)
        dead = count < self.restart_below
        self.code_count.value = jnp.where(dead, self._fresh_count, count)
        # A product with one-hot columns, since accelerators multiply faster than they scatter,
        # and a CPU is four times faster where the left factor is not transposed.
        one_hot = jax.nn.one_hot(codes, self.num_codes, dtype=jnp.float32, axis=0)
        total = jnp.einsum("kn,nd->kd", one_hot, flat, precision=jax.lax.Precision.HIGHEST)
        average = optax.incremental_update(self.code_sum.value, total, self.decay)
        average = jnp.where(faded[:, None], self.code_sum.value, average)
        if self.restart_below > 0:
            average = jnp.where(dead[:, None], self._fresh_count * self._draw(flat), average)
        self.code_sum.value = average

    def _note_dead_codes(self, flat: Float[Array, "n d"], counts: Float[Array, "k"]) -> None:
        """Counts uses, and notes dead codes beside those of earlier microbatches of the step."""
        count = optax.incremental_update(self.code_count.value, counts, self.decay)
        dead = count < self.restart_below
        self.code_count.value = jnp.where(dead, self._fresh_count, count)
        self.dead.value |= dead
        self.restart_at.value = jnp.where(dead[:, None], self._draw(flat), self.restart_at.value)

    @property
    def _fresh_count(self) -> float:
        """Uses of a code that restarts; above the threshold, so that it has time to find some."""
        return max(1.0, 2 * self.restart_below)
