"""Batches on their way: which part of them a process loads, and reading ahead."""

import dataclasses
import logging
from collections.abc import Generator

import grain
import numpy as np
from absl import flags

from vqjax.errors import InputError

Batch = dict[str, np.ndarray]

_log = logging.getLogger(__name__)
# Batches decoded ahead, each by one thread: image decoding and resizing release the GIL.
_READ_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that a process loads: the `index`-th of `count`, from 0."""

    index: int = 0
    count: int = 1


WHOLE = Share()


def deliver(steps: grain.MapDataset, workers: int) -> Generator[Batch, None, None]:
    """Reads ahead, keeping the order, and reports broken images here, where the log is.

    Args:
        steps: batches by number; under "broken" each has messages, which it leaves behind here.
        workers: processes that make them; 0 for threads of this one.
    """
    ahead = steps.to_iter_dataset(
        grain.ReadOptions(
            num_threads=1 if workers else _READ_AHEAD, prefetch_buffer_size=_READ_AHEAD
        )
    )
    if workers:
        # grain reads flags to start its workers, which fails where no program has parsed any.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        )
    iterator = iter(ahead)
    reported: set[str] = set()
    try:
        for batch in iterator:
            for message in batch.pop("broken"):
                if message not in reported:
                    reported.add(message)
                    _log.warning("broken image %d left out: %s", len(reported), message)
            yield batch
    finally:
        iterator.close()


def local_batch_size(batch_size: int, share: Share) -> int:
    """Rows of a batch that a process loads.

    Raises:
        InputError: the processes cannot share it evenly.
    """
    if batch_size <= 0 or batch_size % share.count:
        raise InputError(
            f"batch_size={batch_size} cannot be shared by {share.count} processes; "
            f"choose a multiple of {share.count}"
        )
    return batch_size // share.count
