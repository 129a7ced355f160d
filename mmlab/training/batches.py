"""Batches by step: batch ``t`` is the same in every run, whichever process makes it."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

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
    ):
        if batch_size > len(data):
            raise ValueError(f"batch_size must be at most the {len(data)} images, got {batch_size}")
        if batch_size % num_processes:
            raise ValueError(
                f"batch_size must be a multiple of the {num_processes} processes, got {batch_size}"
            )
        self.data, self.batch_size, self.seed = data, batch_size, seed
        share = batch_size // num_processes
        self.share = slice(process * share, (process + 1) * share)

    def rows(self, step: int) -> Int64[Tensor, " batch"]:
        """The examples of the whole batch of ``step``."""
        epoch, place = divmod(step, len(self.data) // self.batch_size)
        order = _epoch_order(len(self.data), self.seed, epoch)
        return order[place * self.batch_size :][: self.batch_size]

    def __getitem__(self, step: int) -> Batch:
        draws = generator(self.seed, _AUGMENTATION, step)
        return self.data.batch(self.rows(step), self.share, draws)

    def loader(self, first: int, end: int, workers: int = 0) -> DataLoader:
        """The batches of the steps ``first`` … ``end - 1``, made by ``workers`` processes."""
        pinned = torch.cuda.is_available()
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(first, end),
            num_workers=workers,
            pin_memory=pinned,
        )


@lru_cache(maxsize=2)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> Int64[Tensor, " num_examples"]:
    return torch.randperm(num_examples, generator=generator(seed, _ORDER, epoch))
