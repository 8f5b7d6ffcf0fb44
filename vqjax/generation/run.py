"""The trained models of a run, and images from them: the Python side of `sample.py`."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Bool, Int, UInt8

from vqjax.conditions import Condition
from vqjax.errors import InputError, did_you_mean
from vqjax.files import open_path
from vqjax.generation import editing
from vqjax.generation.codec import decode, encode
from vqjax.generation.image_sampler import ImageSampler, Models
from vqjax.generation.inputs import (
    check_edits,
    checked_count,
    checked_image,
    checked_images,
    checked_mask,
    checked_tokens,
)
from vqjax.parallel import make_mesh, placed, to_host
from vqjax.priors import Prior
from vqjax.priors.condition import null_condition
from vqjax.runs.build import (
    build_sampling,
    build_stage_prior,
    build_stage_tokenizer,
    check_config,
)
from vqjax.runs.sampling import Sampling
from vqjax.runs.stages import decoder_of, decoders_of, stages_of, trained_stage
from vqjax.runs.weights import load_tokenizer, load_weights, prior_shapes, split_decoder
from vqjax.runs.workdir import read_condition, read_config
from vqjax.samplers import SAMPLERS
from vqjax.samplers.rejection import (
    Rejection,
    candidate_groups,
    condition_groups,
    keep_best,
)
from vqjax.tokenizers import Tokenizer
from vqjax.tokenizers.base import tokens_shape
from vqjax.tokens import Tokens

Images = UInt8[np.ndarray, "n H W 3"]
Conditions = Int[np.ndarray, "n c"]


class Run:
    """The models of a run; weights are read when they are first asked for.

    Attributes:
        workdir: folder of the run.
        config: that the run was made with.
        mesh: devices that the weights lie on.
        steps: by stage, the training step of the weights that were read.
        prior_stage: name of the prior's stage; None for a run without one.
    """

    def __init__(self, workdir: epath.PathLike, mesh: Mesh | None = None, decoder: str = ""):
        """Reads the config of a run.

        Args:
            workdir: its folder.
            mesh: devices that share each batch; None for all.
            decoder: stage whose decoder makes the images, one of those that trained a decoder on
                the run's codes; "" for the last of them.

        Raises:
            InputError: the folder is not that of a run, or it has no such decoder.
        """
        self.workdir = epath.Path(workdir)
        self.config = read_config(self.workdir)
        check_config(self.config)
        self.mesh = mesh or make_mesh({"data": -1})
        self.steps: dict[str, int] = {}
        priors = stages_of(self.config, "prior")
        self.prior_stage = priors[-1] if priors else None
        # Any stage on the same codes leads to the tokenizer; one that trains a decoder to its own.
        self._stage = self.prior_stage or stages_of(self.config, "tokenizer", "decoder")[-1]
        self._default_decoder = decoder_of(self.config, self._stage)
        if decoder:
            valid = decoders_of(self.config, self._stage)
            if decoder not in valid:
                raise InputError(
                    f"decoder={decoder}: a stage of {self.workdir} that trained a decoder on its"
                    f" codes is needed; {did_you_mean(decoder, valid)}"
                )
            self._stage = decoder

    @cached_property
    def condition(self) -> Condition:
        """The condition that the prior is told; raises InputError if the run has lost it."""
        return read_condition(self.workdir)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model that makes tokens and turns them into images."""
        return build_stage_tokenizer(self.config, self._stage)

    @cached_property
    def prior(self) -> Prior:
        """The model that draws tokens; raises InputError if the run has none."""
        return build_stage_prior(self.config, self._named_prior, self.condition)

    @cached_property
    def tokenizer_variables(self) -> Any:
        """The trained tokenizer's; raises InputError if there is none."""
        return self._load_tokenizer(self._stage, self.tokenizer)

    @cached_property
    def prior_variables(self) -> Any:
        """The trained prior's; raises InputError if there is none."""
        return self._load_prior(self._named_prior, self.prior, self.tokenizer)

    def stage_variables(self, stage: str) -> Any:
        """The variables that a stage has trained, whether images are made with them or not.

        Raises:
            InputError: it has no checkpoint.
        """
        tokenizer = build_stage_tokenizer(self.config, stage)
        kind = self.config[stage].kind
        if kind == "prior":
            if stage == self.prior_stage:
                return self.prior_variables
            prior = build_stage_prior(self.config, stage, self.condition)
            return self._load_prior(stage, prior, tokenizer)
        if stage == self.tokenizer_stage:
            variables = self.tokenizer_variables
        else:
            variables = self._load_tokenizer(stage, tokenizer)
        if kind == "decoder":
            return {"params": split_decoder(tokenizer, variables)[0]}
        return variables

    def _load_tokenizer(self, stage: str, tokenizer: Tokenizer) -> Any:
        """The variables of the model that makes a stage's tokens, read now."""
        variables, steps = load_tokenizer(self.config, self.workdir, stage, tokenizer, self.mesh)
        self.steps |= steps
        return variables

    def _load_prior(self, stage: str, prior: Prior, tokenizer: Tokenizer) -> Any:
        """The variables of a prior, read now."""
        tokens = tokens_shape(tokenizer, self.config.data.resolution).codes.shape[1]
        shapes = prior_shapes(prior, tokens, self.condition.length)
        trained = trained_stage(self.config, self.workdir, stage)
        variables, self.steps[stage] = load_weights(trained, placed(shapes, self.mesh))
        return variables

    @property
    def sampler_function(self) -> Callable[..., Tokens]:
        """The function that draws tokens from the prior, see `vqjax.samplers`."""
        return SAMPLERS[self.config[self._named_prior].model.name].sample

    @property
    def tokenizer_stage(self) -> str:
        """Name of the stage whose decoder makes the images."""
        return decoder_of(self.config, self._stage)

    @property
    def other_decoder(self) -> str:
        """Name of the stage whose decoder makes the images; "" where it is the run's default."""
        decoder = self.tokenizer_stage
        return "" if decoder == self._default_decoder else decoder

    @property
    def grid(self) -> tuple[int, int]:
        """Latent grid (h, w) of the training images."""
        side = self.config.data.resolution
        return self.tokenizer.grid(side, side)

    @property
    def _named_prior(self) -> str:
        if self.prior_stage is None:
            raise InputError(
                f"{self.workdir} is a run without a prior, so it draws no images: train one on its"
                f" tokenizer with --config.{self._stage}.use_from={self.workdir}"
            )
        return self.prior_stage

    def sampling(self, **given: Any) -> Sampling:
        """The config's sampling settings, with given ones in their place.

        Raises:
            InputError: as `build_sampling`, or tiles that the tokenizer cannot decode in.
        """
        sampling = build_sampling(self.config, self._named_prior, self.prior, given)
        self.tokenizer.check_decode_tile(sampling.generation.decode_tile)
        return sampling

    def encode(self, images: Images) -> Tokens:
        """Tokens of 8-bit images of one size.

        Raises:
            InputError: other images, or a size that the tokenizer does not take.
        """
        return encode(self.tokenizer, self.tokenizer_variables, checked_images(images))

    def decode(self, tokens: Tokens) -> Images:
        """8-bit images of tokens, of any grid.

        Raises:
            InputError: tokens that the tokenizer cannot have made.
        """
        tokens = checked_tokens(tokens, self.tokenizer)
        return to_host(decode(self.tokenizer, self.tokenizer_variables, tokens))

    def sample(
        self,
        count: int = 1,
        label: str | int | None = None,
        *,
        caption: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Images:
        """New images.

        Args:
            count: how many.
            label: what is to be seen, for class-conditional runs: a class by name or number; None
                for all in turn.
            caption: what is to be seen, for text-conditional runs; None for some captions of the
                training set in turn.
            seed: another one gives other images.
            settings: of `config.sampling`, in the place of the config's, but for num_images.

        Raises:
            InputError: there is no trained prior, no such class or setting, a label for a run that
                is told captions or the other way round.
        """
        sampling = self._sampling_of(checked_count(count), settings)
        conditions = self.conditions(count, label, caption)
        return self._all(self.images(conditions, sampling, seed=seed))

    def edit(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        mask: UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"] | Bool[np.ndarray, "H W"],
        *,
        count: int = 1,
        label: str | int | None = None,
        caption: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Images:
        """Images in which the masked part is made anew; see `vqjax.generation.editing` for more.

        Args:
            image: RGB.
            mask: of the same size; what is True, or nearer to white than to black, is made anew.
            count: how many results.
            label: what the image shows, for class-conditional runs.
            caption: likewise, for text-conditional ones.
            seed: another one gives other results.
            settings: of `config.sampling`, in the place of the config's, but for num_images.

        Raises:
            InputError: as `sample`, `check_edits` and `editing.inpaint`.
        """
        check_edits(self.prior)
        hole = editing.inpaint(self.tokenizer, checked_image(image), checked_mask(mask))
        sampling = self._sampling_of(checked_count(count), settings)
        conditions = self.edit_conditions(count, label, caption)
        return self._all(self.images(conditions, sampling, seed=seed, edit=hole))

    def conditions(
        self, count: int, label: str | int | None = None, caption: str | None = None
    ) -> Conditions:
        """Conditions of so many images: all of one label or caption, or those there are in turn.

        Raises:
            InputError: there is no such label, the caption is empty or too long, or the run is told
                the other of the two.
        """
        given = {"label": label, "caption": caption}
        own = self.condition.asked_by
        for name, value in given.items():
            if value is not None and name != own and self.condition.length:
                raise InputError(f"{value}: this run is told a {own}, not a {name}: give --{own}")
        asked = [value for value in given.values() if value is not None]
        if not asked:
            return self.condition.in_turn(count)
        return np.tile(self.condition.parse(str(asked[0])), (count, 1))

    def edit_conditions(
        self, count: int, label: str | int | None = None, caption: str | None = None
    ) -> Conditions:
        """Conditions of edited images: of one label or caption, or the null condition.

        Raises:
            InputError: as `conditions`, or the prior does not know the null condition.
        """
        if label is not None or caption is not None or not self.condition.length:
            return self.conditions(count, label, caption)
        if not self.prior.condition_dropout:
            raise InputError(
                "this run is conditional and was trained without condition_dropout, so editing"
                f" needs --{self.condition.asked_by}: what the image shows"
            )
        blank = jnp.zeros((count, self.condition.length), jnp.int32)
        return np.asarray(null_condition(blank, self.prior.num_ids))

    def sampler(self, count: int, sampling: Sampling, **options: Any) -> ImageSampler:
        """The sampler of so many images; for options see `ImageSampler.of`."""
        models = Models(
            self.tokenizer,
            self.tokenizer_variables,
            self.prior,
            self.prior_variables,
            self.sampler_function,
            self.mesh,
        )
        return ImageSampler.of(models, sampling, count, **options)

    def images(
        self,
        conditions: Conditions,
        sampling: Sampling,
        *,
        rejection: Rejection | None = None,
        **options: Any,
    ) -> Iterator[Images]:
        """One image for every condition, batch by batch.

        Args:
            conditions: of the images.
            sampling: settings.
            rejection: draw more images than wanted and keep the best under each condition; only
                their tokens are kept while they are drawn.
            options: of `ImageSampler.of`.
        """
        if rejection is None:
            yield from self.sampler(len(conditions), sampling, **options).images(conditions)
            return
        distinct, groups = condition_groups(conditions)
        candidates = candidate_groups(groups, rejection.acceptance)
        sampler = self.sampler(len(candidates), sampling, **options)
        drawn = list(sampler.candidates(distinct[candidates], rejection))
        codes, positions, scores = (np.concatenate(column) for column in zip(*drawn, strict=True))
        kept = keep_best(scores, candidates, groups)
        yield from sampler.decoded(codes[kept], positions[kept])

    def _sampling_of(self, count: int, settings: Mapping[str, Any]) -> Sampling:
        if "num_images" in settings:
            raise InputError(f"num_images={settings['num_images']}: count={count} says how many")
        return self.sampling(**settings)

    def _all(self, batches: Iterator[Images]) -> Images:
        return np.stack(list(itertools.chain.from_iterable(batches)))


def load(workdir: epath.PathLike, mesh: Mesh | None = None, decoder: str = "") -> Run:
    """A trained run, to encode, decode, sample and edit with.

    Args:
        workdir: its folder, on disk or gs://bucket/folder.
        mesh: devices that share each batch; None for all.
        decoder: stage whose decoder makes the images, see `Run`.

    Raises:
        InputError: as `Run`, or its bucket cannot be used.
    """
    return Run(open_path(os.fspath(workdir), "workdir"), mesh, decoder)
