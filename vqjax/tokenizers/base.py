"""The contract of a tokenizer, and what those with one code for every cell share.

A tokenizer is a Linen module of an encoder, a codebook, a decoder and a last layer. A sparse one
(n < h * w tokens) derives from `Tokenizer` too, says so in `token_kind` and has its own `features`,
`encode` and `decode`.
"""

import functools
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vqjax.errors import InputError
from vqjax.nn.convolutional import Convolution
from vqjax.quantizers import STATE, VectorQuantizer
from vqjax.random_keys import split_by_name
from vqjax.settings import check_settings
from vqjax.tokens import Tokens

Metrics = dict[str, Float[Array, ""]]
TokenKind = Literal["dense", "sparse"]

# Path of the codebook among the parameters.
_CODEBOOK = "quantizer/codebook"


class ReplacedRows(NamedTuple):
    """Rows of a parameter that a training step is to replace.

    Attributes:
        path: of the parameter.
        rows: which.
        vectors: by what; the other rows don't count.
    """

    path: str
    rows: Bool[Array, "k"]
    vectors: Float[Array, "k d"]


class Tokenizer(nn.Module):
    """Images to tokens and back, one code for every cell of the latent grid.

    Attributes:
        quantizer: the codebook.
    """

    # Name of the last layer, which `make_last_layer` makes, among the parameters.
    last_layer: ClassVar[str] = "last_convolution"
    # Why it decodes an image whole, for messages.
    whole_because: ClassVar[str] = "this tokenizer decodes the whole image at once"

    quantizer: VectorQuantizer

    def __post_init__(self) -> None:
        """Checks the fields, each by itself.

        Raises:
            FieldError: a value out of its range.
        """
        check_settings(self)
        super().__post_init__()

    if TYPE_CHECKING:

        def apply(self, *args: Any, **kwargs: Any) -> Any:
            """Linen's own, which has no type for the result of a method of ours."""

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Encoder (images to latents of the code's width) and decoder (those to features)."""
        raise NotImplementedError

    @property
    def downsampling(self) -> int:
        """The factor f between the sides of image and latent grid."""
        raise NotImplementedError

    @property
    def token_kind(self) -> TokenKind:
        """Of its tokens: "dense", a code for every cell, or "sparse", for some of them."""
        return "dense"

    @property
    def rngs(self) -> tuple[str, ...]:
        """Streams that a training step draws random numbers from, besides "params"."""
        return ("restart",)

    @property
    def decoder_parts(self) -> tuple[str, ...]:
        """Names of the parameters that `decode` alone reads: those that a decoder stage trains."""
        return "decoder", self.last_layer

    @property
    def code_parts(self) -> tuple[Any, ...]:
        """What of the model decides, given weights, which tokens it makes of an image; bound."""
        return self.encoder, self.quantizer

    def check_dense(self, what: str) -> None:
        """Checks that the tokens have a map of codes, which `what` needs.

        Raises:
            InputError: they are sparse.
        """
        if self.token_kind != "dense":
            raise InputError(
                f"{what} needs a code for every cell of the latent grid, but the tokenizer"
                f" {type(self).__name__} makes {self.token_kind} tokens"
            )

    def check_decode_tile(self, tile: int) -> None:
        """Checks the setting `decode_tile`: tiles are of a map of codes, and of a side that works.

        Raises:
            InputError: as `check_dense` and `check_tile`.
        """
        if tile:
            self.check_dense(f"decode_tile={tile}")
        self.check_tile(tile)

    def check_tile(self, tile: int) -> None:
        """Checks the side of the tiles that `decode` is asked for, in pixels; 0 is no tiles.

        Here all others are refused: one that can decode in tiles checks their side.

        Raises:
            InputError: the tokenizer cannot decode in such tiles.
        """
        if tile:
            raise InputError(
                f"decoding in tiles of {tile} pixels: {self.whole_because} and cannot do that; set"
                " 0, and decode fewer images at a time"
            )

    def make_last_layer(self) -> nn.Module:
        """The layer that turns features into pixels: a convolution, unless a tokenizer differs.

        It has a "kernel", and computes in float32, whatever the rest computes in.
        """
        return Convolution(3, 3, padding=1, dtype=jnp.float32)

    def setup(self) -> None:
        """Builds the networks, and the last layer under its name."""
        self.encoder, self.decoder = self.networks()
        setattr(self, self.last_layer, self.make_last_layer())

    @property
    def num_codes(self) -> int:
        """Size of the codebook."""
        return self.quantizer.num_codes

    @property
    def granularity(self) -> str:
        """The numbers that decide which sides fit, for messages."""
        return f"f={self.downsampling}"

    def fits(self, side: int) -> bool:
        """True if an image may have a side of so many pixels."""
        return side > 0 and side % self.downsampling == 0

    def fitting_side(self, side: int) -> int:
        """The shortest side of at least so many pixels that fits."""
        f = self.downsampling
        return next(s for s in range(-(-side // f) * f, 2**20, f) if self.fits(s))

    @property
    def shortest_side(self) -> int:
        """Pixels of the shortest side that is worth tokenizing; `fits` alone may allow less."""
        return self.downsampling

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The latent grid of an image of `height` x `width` pixels.

        Raises:
            InputError: a side that does not fit; names the nearest that do.
        """
        f = self.downsampling
        for side in (height, width):
            if not self.fits(side):
                below = next((s for s in range(side // f * f, 0, -f) if self.fits(s)), None)
                above = self.fitting_side(side)
                near = f"{below} or {above}" if below else f"{above}"
                raise InputError(
                    f"a side of {side} pixels does not fit a tokenizer with {self.granularity}:"
                    f" the nearest that works is {near}"
                )
        return height // f, width // f

    def encode(self, images: Float[Array, "b H W 3"]) -> Tokens:
        """Tokens of images in [-1, 1].

        Raises:
            InputError: as `grid`.
        """
        self.grid(*images.shape[1:3])
        _, codes, _, _ = self.quantizer(self.encoder(images))
        return Tokens.dense(codes)

    def decode(self, tokens: Tokens, tile: int = 0) -> Float[Array, "b H W 3"]:
        """Images of dense tokens, [-1, 1] up to the model's error.

        Args:
            tokens: of any grid that `grid` makes.
            tile: side in pixels of the tiles that are decoded one by one to save memory, where the
                tokenizer can; 0 decodes the whole image at once.

        Raises:
            InputError: as `grid` and `check_tile`.
        """
        self.grid(*(side * self.downsampling for side in tokens.grid))
        self.check_tile(tile)
        return self._decode(self.quantizer.embed(tokens.code_map), tile)

    def _decode(self, z_q: Float[Array, "b h w d"], tile: int) -> Float[Array, "b H W 3"]:
        """Pixels of quantized latents; whole, unless a tokenizer can do otherwise."""
        return self.to_pixels(self.decoder(z_q))

    def codebook(self) -> Float[Array, "k d"]:
        """The vectors of all codes."""
        return self.quantizer.codes()

    def latents(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b n d"]:
        """The vectors of images in [-1, 1] that are compared with the codes, one for each token.

        Raises:
            InputError: as `grid`.
        """
        self.grid(*images.shape[1:3])
        z = self.quantizer.compared(self.encoder(images))
        return z.reshape(len(z), -1, z.shape[-1])

    def with_codebook(
        self, model_state: Any, codes: Float[Array, "k d"], uses: Float[Array, "k"]
    ) -> tuple[ReplacedRows | None, Any]:
        """What is to be set, outside of a step, to give the tokenizer another codebook.

        Args:
            model_state: the model's collections but "params".
            codes: all vectors, of length one where the codebook is on the unit sphere.
            uses: of each code by a batch.

        Returns:
            All rows of the codebook where it is a parameter, else None; the state with it.
        """
        state = self.quantizer.state_of(codes, uses)
        if state:
            model_state = {**model_state, STATE: {**model_state[STATE], "quantizer": state}}
        if self.quantizer.learning == "ema":
            return None, model_state
        rows = jnp.ones(self.num_codes, bool)
        return ReplacedRows(_CODEBOOK, rows, codes), model_state

    def replaced_codes(self, model_state: Any) -> tuple[ReplacedRows, Any] | None:
        """The codes that are to be replaced after a training step, which alone can set parameters.

        Args:
            model_state: the model's collections but "params", after the step's forward passes.

        Returns:
            The codes, and the state without the note of them; None where none are ever replaced.
        """
        if not self.quantizer.notes_dead_codes:
            return None
        notes = model_state[STATE]["quantizer"]
        replaced = ReplacedRows(_CODEBOOK, notes["dead"], notes["restart_at"])
        forgotten = {**notes, "dead": jnp.zeros_like(notes["dead"])}
        return replaced, {**model_state, STATE: {**model_state[STATE], "quantizer": forgotten}}

    def to_pixels(self, features: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """The last layer alone, whose kernel the adaptive weight of an adversarial loss reads."""
        return getattr(self, self.last_layer)(features)

    def features(
        self, images: Float[Array, "b H W 3"], train: bool = False
    ) -> tuple[Float[Array, "b h w c"], Tokens, Float[Array, ""], Metrics]:
        """Encodes, quantizes and decodes, up to the last layer.

        Args:
            images: [-1, 1].
            train: learn the codebook; see `VectorQuantizer.__call__` for collections and rngs.

        Returns:
            The input of `to_pixels`, of the images' grid or a coarser one; the tokens; the loss of
            the quantizer; its statistics.

        Raises:
            InputError: as `grid`.
        """
        self.grid(*images.shape[1:3])
        z_q, codes, loss, metrics = self.quantizer(self.encoder(images), train)
        return self.decoder(z_q), Tokens.dense(codes), loss, metrics

    def __call__(
        self, images: Float[Array, "b H W 3"], train: bool = False
    ) -> tuple[Float[Array, "b H W 3"], Tokens, Float[Array, ""], Metrics]:
        """Encodes, quantizes and decodes; the reconstruction, and the rest as `features`."""
        features, tokens, loss, metrics = self.features(images, train)
        return self.to_pixels(features), tokens, loss, metrics


def same_codes(tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """True if two models make the same tokens, given the same weights."""
    return tokenizer.bind({}).code_parts == other.bind({}).code_parts


def init_keys(tokenizer: Tokenizer, key: Key[Array, ""]) -> dict[str, Key[Array, ""]]:
    """A key for "params" and for each stream of a tokenizer, as its `init` takes them."""
    return split_by_name(key, ("params", *tokenizer.rngs))


def step_keys(tokenizer: Tokenizer, key: Key[Array, ""]) -> dict[str, Key[Array, ""]]:
    """A key for each stream of a tokenizer in a training step; the step's own if there is one."""
    streams = tokenizer.rngs
    return {streams[0]: key} if len(streams) == 1 else split_by_name(key, streams)


# Tracing a model is what takes longest of a description, and every stage asks.
@functools.lru_cache(maxsize=32)
def tokenizer_shapes(tokenizer: Tokenizer, resolution: int) -> dict[str, Any]:
    """Shapes of a tokenizer's variables; `resolution` is any side in pixels that it takes."""
    images = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
    keys = dict.fromkeys(("params", *tokenizer.rngs), jax.random.key(0))
    return jax.eval_shape(lambda x: tokenizer.init(keys, x), images)


@functools.lru_cache(maxsize=32)
def tokens_shape(tokenizer: Tokenizer, resolution: int) -> Tokens:
    """Shapes of the tokens of an image."""
    images = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)

    def encode(variables: dict[str, Any], x: Any) -> Any:
        return tokenizer.apply(variables, x, method="encode")

    return jax.eval_shape(encode, tokenizer_shapes(tokenizer, resolution), images)
