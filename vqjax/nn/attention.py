"""Attention: the one function that every model calls, and the layer with its projections."""

import functools
from typing import Literal, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vqjax.nn.linear import DenseGeneral, called_precision

Implementation = Literal["xla", "cudnn"]


def attention(
    query: Float[Array, "*b q heads d"],
    key: Float[Array, "*b k heads d"],
    value: Float[Array, "*b k heads d"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    key_weights: Float[Array, "*b k"] | None = None,
    implementation: Implementation = "xla",
) -> Float[Array, "*b q heads d"]:
    """Scaled dot-product attention with the softmax in float32.

    Args:
        query: queries.
        key: keys.
        value: values.
        bias: added to the logits; broadcasts to (*b, heads, q, k).
        mask: True where a query may see a key; broadcasts to (*b, heads, q, k). Every query must
            see a key.
        key_weights: by which each key's part in the result is multiplied, after the softmax.
        implementation: "xla" runs everywhere and holds the attention matrix; "cudnn" is NVIDIA's
            fused kernel, for bfloat16 on a GPU.

    Returns:
        The attended values, in the dtype of `value`.

    Source: Vaswani et al. 2017, Eq. 1.
    """
    if key_weights is not None:
        # The weights of the attention would be multiplied by those of a whole column.
        value = value * key_weights[..., None, None].astype(value.dtype)
    if implementation == "cudnn":
        lead = query.shape[:-3]
        shape = (*lead, query.shape[-2], query.shape[-3], key.shape[-3])

        def flat(x: Array | None) -> Array | None:
            return None if x is None else jnp.broadcast_to(x, shape).reshape(-1, *shape[-3:])

        # The kernel takes a bias of its own type only. Cast last, so that the gradient of a
        # parameter is summed in float32.
        flat_bias = flat(bias)

        out = jax.nn.dot_product_attention(
            query.reshape(-1, *query.shape[-3:]),
            key.reshape(-1, *key.shape[-3:]),
            value.reshape(-1, *value.shape[-3:]),
            bias=None if flat_bias is None else flat_bias.astype(query.dtype),
            mask=flat(mask),
            implementation="cudnn",
        )
        return out.reshape(query.shape)
    logits = _products(called_precision(), query, key) * query.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _products(
    precision: str | None, query: Float[Array, "*b q heads d"], key: Float[Array, "*b k heads d"]
) -> Float[Array, "*b heads q k"]:
    """Of each query with each key, float32; the gradients are products in the dtype of these."""
    return jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32)


def _products_backward(
    precision: str | None, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    query, key = saved
    # A product of float32 and bfloat16 is one of float32, at half the speed or less.
    gradient = gradient.astype(query.dtype)
    with jax.default_matmul_precision(precision):
        to_query = jnp.einsum("...hqk,...khd->...qhd", gradient, key)
        to_key = jnp.einsum("...hqk,...qhd->...khd", gradient, query)
    return to_query, to_key


_products.defvjp(
    lambda precision, query, key: (_products(precision, query, key), (query, key)),
    _products_backward,
)


class KeyValues(NamedTuple):
    """Keys and values of a sequence, of which those of its beginning are computed.

    A row is a head of an image. They lie as the products with them read them: XLA's CPU would copy
    all of them in each step if they lay otherwise.

    Attributes:
        key: keys; anything where they are not yet computed.
        value: values, likewise.
    """

    key: Float[Array, "*layers rows d n"]
    value: Float[Array, "*layers rows d n"]

    def written(
        self,
        key: Float[Array, "b q heads d"],
        value: Float[Array, "b q heads d"],
        start: Int[Array, ""] | int,
    ) -> "KeyValues":
        """With those of the positions from `start` on in their place."""

        def write(old: Array, new: Array) -> Array:
            new = einops.rearrange(new, "b q heads d -> (b heads) d q")
            return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=-1)

        return KeyValues(write(self.key, key), write(self.value, value))

    def attended(
        self, query: Float[Array, "b q heads d"], mask: Bool[Array, "..."] | None
    ) -> Float[Array, "b q heads d"]:
        """`attention` of queries to all of the sequence; `mask` as there."""
        b, q, heads, _ = query.shape
        if mask is not None:
            n = self.key.shape[-1]
            mask = jnp.broadcast_to(mask, (b, heads, q, n)).reshape(b * heads, 1, q, n)
        query = einops.rearrange(query, "b q heads d -> (b heads) q 1 d")
        key, value = (einops.rearrange(x, "rows d n -> rows n 1 d") for x in self)
        y = attention(query, key, value, mask=mask)
        return einops.rearrange(y, "(b heads) q 1 d -> b q heads d", b=b)


class MultiHeadAttention(nn.Module):
    """Self-attention with its projections.

    Attributes:
        num_heads: heads; divides the width of the input.
        dtype: compute dtype; parameters are float32.
        kernel_init: initialiser of the projections.
        implementation: see `attention`.
        out_init: initialiser of the projection of the output, if not `kernel_init`.
    """

    num_heads: int
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    implementation: Implementation = "xla"
    out_init: nn.initializers.Initializer | None = None

    def __call__(
        self,
        x: Float[Array, "*b n dim"],
        bias: Float[Array, "..."] | None = None,
        mask: Bool[Array, "..."] | None = None,
        key_weights: Float[Array, "*b n"] | None = None,
    ) -> Float[Array, "*b n dim"]:
        """Attends within the last-but-one axis; all but `x` as in `attention`.

        Raises:
            ValueError: if the heads do not divide the width of the input.
        """
        return self._attend(x, bias, mask, key_weights, None, 0)[0]

    def extend(
        self,
        x: Float[Array, "b q dim"],
        mask: Bool[Array, "..."] | None,
        cache: KeyValues,
        start: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "b q dim"], KeyValues]:
        """Attends from the next positions of a sequence to them and to all before.

        Args:
            x: those positions.
            mask: as in `attention`; of the positions after `x`, none may be seen.
            cache: keys and values of the positions before.
            start: how many these are.

        Returns:
            The output, and the cache with the keys and values of `x`.
        """
        y, written = self._attend(x, None, mask, None, cache, start)
        assert written is not None
        return y, written

    @nn.compact
    def _attend(
        self,
        x: Float[Array, "*b q dim"],
        bias: Float[Array, "..."] | None,
        mask: Bool[Array, "..."] | None,
        key_weights: Float[Array, "*b q"] | None,
        cache: KeyValues | None,
        start: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "*b q dim"], KeyValues | None]:
        """Attends from `x` to all that is cached, or where there is no cache, to itself."""
        dim = x.shape[-1]
        if dim % self.num_heads:
            raise ValueError(f"a width of {dim} is not divided by {self.num_heads} heads")
        head_dim = dim // self.num_heads
        qkv = DenseGeneral(
            (3, self.num_heads, head_dim),
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="qkv",
        )(x)
        query, key, value = einops.rearrange(qkv, "... three h d -> three ... h d")
        if cache is None:
            y = attention(
                query,
                key,
                value,
                bias=bias,
                mask=mask,
                key_weights=key_weights,
                implementation=self.implementation,
            )
        else:
            # The fused kernel is for many queries.
            cache = cache.written(key, value, start)
            y = cache.attended(query, mask)
        out_init = self.out_init or self.kernel_init
        y = DenseGeneral(dim, num_axes=2, dtype=self.dtype, kernel_init=out_init, name="out")(y)
        return y, cache
