"""A run under evaluation: its models, the images of its data, and their protocols."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from etils import epath
from jaxtyping import Int
from ml_collections import ConfigDict

from vqjax.conditions import NoCondition
from vqjax.data import Split, build_source, evaluation_batches, pipeline
from vqjax.data.pipeline import evaluation_order
from vqjax.evaluation.evaluator import Evaluator
from vqjax.evaluation.npz import write_images
from vqjax.evaluation.protocol import digest
from vqjax.evaluation.references import Reference, make_reference
from vqjax.generation.run import Run
from vqjax.runs.build import data_settings
from vqjax.runs.stages import tokenizer_of, trained_stage


class EvaluatedRun:
    """A run with the evaluator that measures it.

    Attributes:
        evaluator: how images are measured.
        models: the run's.
        config: of the run.
    """

    def __init__(self, workdir: epath.Path, evaluator: Evaluator, decoder: str = ""):
        """Reads the config of the run in `workdir`.

        Args:
            workdir: folder of the run.
            evaluator: how images are measured.
            decoder: stage whose decoder makes them; "" for the run's default.

        Raises:
            InputError: the folder is not that of a run, or it has no such decoder.
        """
        self.evaluator = evaluator
        self.models = Run(workdir, evaluator.mesh, decoder)
        self.config = self.models.config

    def split_protocol(self, split: str, limit: int | None) -> dict[str, Any]:
        """The identity of a split's images, and their way to the run's resolution."""
        source = self._source(split)
        return {
            "split": split,
            "source": self.config.data.source.name,
            "files": source.fingerprint,
            "classes": digest(list(map(str, source.class_names))),
            "limit": self.split_count(split, limit),
            "resolution": self.config.data.resolution,
            "crop": "central square",
            "resize": f"Lanczos, antialiased (Pillow {PIL.__version__}), where the size differs",
            "order": "permutation of numpy.random.default_rng(0)",
        }

    def split_modules(self, split: str) -> tuple[str, ...]:
        """Names of the modules that read the images of a split."""
        return type(self._source(split)).__module__, pipeline.__name__

    def split_count(self, split: str, limit: int | None) -> int:
        """The number of images of a split, at most `limit`."""
        count = len(self._source(split))
        return count if limit is None else min(limit, count)

    def split_batches(
        self, split: str, limit: int | None, start: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """Images of a split from a batch on; see `evaluation_batches`."""
        return evaluation_batches(
            self._source(split),
            # Images and classes are looked at, not what a prior is told.
            NoCondition(),
            data_settings(self.config),
            batch_size=self.evaluator.batch_size,
            limit=limit,
            start=start,
        )

    def split_conditions(
        self, split: str, limit: int | None, count: int
    ) -> Int[np.ndarray, "{count} c"]:
        """What the prior is told of images of a split, of each once before any comes again.

        Args:
            split: of the run's data, "train" or "validation".
            limit: at most so many images, as of `reference`.
            count: of the conditions.

        Raises:
            InputError: an image that cannot be told.
        """
        source, condition = self._source(split), self.models.condition
        order = evaluation_order(len(source), limit)
        told = [
            condition.encode({"captions": source.captions_of(i), "name": source.name_of(i)})
            for i in map(int, order[:count])
        ]
        return np.stack(told)[np.arange(count) % len(told)]

    def reference(self, split: str, limit: int | None) -> Reference:
        """The images of a split, whose features are computed once for all runs on it.

        Args:
            split: of the run's data, "train" or "validation".
            limit: at most so many, the first ones of a fixed random order; None for all.
        """
        return make_reference(
            self.split_protocol(split, limit),
            functools.partial(self.split_batches, split, limit),
            self.split_count(split, limit),
            self.evaluator.network,
            self.evaluator.features,
            self.evaluator.batch_size,
            self.split_modules(split),
        )

    def export_split(self, split: str, limit: int | None, reference: Reference, file: Path) -> None:
        """Writes the images of a split, with their classes, for other evaluators.

        Args:
            split: of the run's data, "train" or "validation".
            limit: see `reference`.
            reference: as `reference` returns it.
            file: the .npz to write.
        """
        side = self.config.data.resolution
        images = (batch["image"][batch["valid"]] for batch in self.split_batches(split, limit))
        shape = (reference.protocol["count"], side, side, 3)
        write_images(file, images, shape, reference.labels)

    def class_names(self, split: str) -> Sequence[str]:
        """Names of the classes of a split."""
        return self._source(split).class_names

    def settings(self, stage: str) -> ConfigDict:
        """The settings that a stage was trained with."""
        return trained_stage(self.config, self.models.workdir, stage).config

    @property
    def tokenizer_settings(self) -> list[ConfigDict]:
        """The settings of the stages that trained the tokenizer: its own, and its decoder's."""
        decoder = self.models.tokenizer_stage
        stages = dict.fromkeys([tokenizer_of(self.config, decoder), decoder])
        return [self.settings(stage) for stage in stages]

    def tokenizer_protocol(self) -> dict[str, Any]:
        """The weights of the tokenizer, how they were chosen, and whose decoder it has."""
        decoder = self.models.tokenizer_stage
        return {"decoder": decoder, **self._protocol(decoder, self.models.tokenizer_variables)}

    def prior_protocol(self) -> dict[str, Any]:
        """The weights of the prior, and how they were chosen."""
        variables = self.models.prior_variables
        return self._protocol(self.models.prior_stage or "", variables)

    def _protocol(self, stage: str, variables: Any) -> dict[str, Any]:
        settings = self.settings(stage)
        return {
            "model": self.config[stage].model.to_dict(),
            "weights": digest(variables),
            "step": self.models.steps[stage],
            "average": bool(settings.ema_decay),
            "use": settings.use,
        }

    @functools.cache  # noqa: B019 - there are two
    def _source(self, split: str) -> Any:
        valid: Split = "train" if split == "train" else "validation"
        return build_source(self.config.data.source, valid, self.config.data.resolution)
