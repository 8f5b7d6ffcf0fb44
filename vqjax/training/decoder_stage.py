"""Training of a decoder on the codes of a tokenizer that does not move.

Source: paper 001, section 3.4 (phase 2 of SeQ-GAN).
"""

from typing import Any

from etils import epath
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.runs.stages import TrainedStage, tokenizer_of, trained_stage
from vqjax.runs.weights import load_weights, split_decoder
from vqjax.tokenizers.base import tokenizer_shapes
from vqjax.training.tokenizer_stage import TokenizerStage


class DecoderStage(TokenizerStage):
    """Trains a decoder; encoder and codebook are frozen arrays that its state does not hold.

    It starts from the decoder of its tokenizer, in all layers that both have. Its losses are those
    of a tokenizer, without the quantizer's.
    """

    trains_codes = False

    def __init__(self, name: str, config: ConfigDict, workdir: epath.Path):
        """Takes the stage's name, the run's config and its folder.

        Raises:
            InputError: as `TokenizerStage`; a weight of the quantizer's loss, which has nothing to
                train here.
        """
        super().__init__(name, config, workdir)
        self.tokenizer = tokenizer_of(config, name)
        if self.weights.vq:
            raise InputError(
                f"config.{name}.loss.vq={self.weights.vq}: the codebook of a decoder stage does not"
                " move, so set 0"
            )

    def init_variables(self, key: Key[Array, ""]) -> Any:
        """The decoder's parameters."""
        decoder, _ = split_decoder(self.model, super().init_variables(key))
        return {"params": decoder}

    def source_of_start(self) -> TrainedStage:
        """The stage of the run that `init_from` names, or else the tokenizer."""
        own = trained_stage(self.run_config, self.workdir, self.tokenizer)
        return super().source_of_start() or own

    def frozen_shapes(self) -> Any:
        """Shapes of the nets of the losses, and of encoder and codebook ("codes")."""
        _, codes = split_decoder(self.model, tokenizer_shapes(self.model, self.image_shape[0]))
        return {**super().frozen_shapes(), "codes": codes}

    def load_frozen(self, shapes: Any) -> Any:
        """The nets of the losses, and the trained encoder and codebook."""
        source = trained_stage(self.run_config, self.workdir, self.tokenizer)
        codes, _ = load_weights(source, shapes["codes"])
        return {**super().load_frozen(shapes), "codes": codes}

    def variables(self, params: Any, model_state: Any, frozen: Any) -> Any:
        """The frozen encoder and codebook with the decoder that is trained."""
        del model_state
        codes = frozen["codes"]
        return {**codes, "params": {**codes["params"], **params}}
