"""Batches for the loop, of two kinds of data.

``Batches`` is for data that can be asked for any example: batch ``t`` is the same in every run,
whichever process makes it. ``StreamedBatches`` is for data that can only be read on. Both have a
``loader`` for the steps that are left, and a ``state_dict`` from which they go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from mmlab.datasets.example import Example
from mmlab.datasets.shards import ShardLoader, ShardOptions, State
from mmlab.training.seeds import generator

Batch = dict[str, Tensor]
_ORDER, _AUGMENTATION = 1, 2


@runtime_checkable
class TrainingData(Protocol):
    """What a data set must offer to be trained on."""

    def __len__(self) -> int: ...

    def batch(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        """The examples ``rows[share]``, augmented.

        Random numbers are drawn for all ``rows``, so that an example is augmented alike however
        many processes share the batch.
        """
        ...


@runtime_checkable
class StreamedData(Protocol):
    """What data from shards must offer to be trained on; ``wants`` as in ``ShardOptions``."""

    shards: tuple[str, ...]
    wants: str

    def collate(self, examples: Iterable[Example], draws: Generator) -> dict[str, Tensor]:
        """A batch of examples, augmented with random numbers from ``draws`` alone."""
        ...


class Batches(Dataset):
    """``batches[step]``: this process's share of the batch of a step.

    An epoch is one random order of all examples; those that fill no whole batch at its end are left
    out and come up in other epochs. ValueError if the batch is larger than the data set or cannot
    be shared evenly.
    """

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        seed: int,
        process: int = 0,
        num_processes: int = 1,
        workers: int = 0,
    ):
        if batch_size > len(data):
            raise ValueError(f"batch_size must be at most the {len(data)} images, got {batch_size}")
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.workers = workers
        share = _share(batch_size, num_processes)
        self.share = slice(process * share, (process + 1) * share)

    def rows(self, step: int) -> Int64[Tensor, " batch"]:
        """The examples of the whole batch of ``step``."""
        epoch, place = divmod(step, len(self.data) // self.batch_size)
        order = _epoch_order(len(self.data), self.seed, epoch)
        return order[place * self.batch_size :][: self.batch_size]

    def __getitem__(self, step: int) -> Batch:
        draws = generator(self.seed, _AUGMENTATION, step)
        return self.data.batch(self.rows(step), self.share, draws)

    def loader(self, first: int, end: int) -> DataLoader:
        """The batches of the steps ``first`` … ``end - 1``, made by ``workers`` processes."""
        pinned = torch.cuda.is_available()
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(first, end),
            num_workers=self.workers,
            pin_memory=pinned,
        )

    def state_dict(self) -> State:
        """Nothing: the step says it all."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to do."""

    def counts(self) -> dict[str, int]:
        """Nothing is skipped, so there is nothing to tell."""
        return {}


class StreamedBatches:
    """This process's batches from a stream: the samples of its own shards.

    A step's batch is what all processes read for it, ``batch_size`` pairs. Guaranteed is that no
    pair comes twice within an epoch, and that the same recipe with as many processes gives the same
    batches; another number of processes or workers shares the shards differently, so the batches
    are others of the same kind. ShardError (a ValueError) if there are fewer shards than readers.
    """

    def __init__(
        self,
        data: StreamedData,
        batch_size: int,
        options: ShardOptions,
        process: int = 0,
        num_processes: int = 1,
        workers: int = 0,
    ):
        share = _share(batch_size, num_processes)
        readers = (process, num_processes, workers)
        self._loader = ShardLoader(data.shards, share, data.collate, options, *readers)

    def loader(self, first: int, end: int) -> Iterator[Batch]:
        """As many batches as there are steps from ``first`` to ``end - 1``."""
        with closing(iter(self._loader)) as batches:
            yield from islice(batches, end - first)

    def state_dict(self) -> State:
        """Where the stream stands after the batch given last."""
        return self._loader.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Go on from there; ShardError if that was a stream of other shards or readers."""
        self._loader.load_state_dict(state)

    def counts(self) -> dict[str, int]:
        """How many samples this process has skipped so far."""
        return {"skipped": sum(self._loader.report.skipped.values())}


def _share(batch_size: int, num_processes: int) -> int:
    """How many examples of a batch each process takes."""
    if batch_size % num_processes:
        raise ValueError(
            f"batch_size must be a multiple of the {num_processes} processes, got {batch_size}"
        )
    return batch_size // num_processes


@lru_cache(maxsize=2)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> Int64[Tensor, " num_examples"]:
    return torch.randperm(num_examples, generator=generator(seed, _ORDER, epoch))
