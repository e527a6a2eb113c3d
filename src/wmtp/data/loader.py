"""Which documents make up which batch: a pure function of (seed, epoch).

So the position in the data is one integer, the number of batches taken, and a resumed run needs nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from wmtp.data.cache import TokenStore
from wmtp.data.collate import collate
from wmtp.types import Batch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loader:
    """Batches of rows of documents.

    Attributes:
        store: the documents.
        batch_size: rows of a batch, over all micro-batches and processes; the last of an epoch may have fewer.
        max_length: S at most. No document is longer.
        pack: several short documents in a row, else one a row.
        mask_prompt: whether prompt tokens are not learnt.
        pad_id: token that fills short rows.
        seed: of the order, with the epoch; >= 0.
        shuffle: false keeps one order, the same in every epoch (held-out data).
        rank, ranks: which of how many processes this is. Each has its share of a batch's rows, see `share_of`.
    """

    store: TokenStore
    batch_size: int
    max_length: int
    pack: bool
    mask_prompt: bool
    pad_id: int
    seed: int
    shuffle: bool = True
    rank: int = 0
    ranks: int = 1
    _plans: dict[int, list[list[int]]] = field(default_factory=dict[int, list[list[int]]], init=False, repr=False)

    @property
    def batches_per_epoch(self) -> int:
        """The same in every epoch: how many rows packing needs depends on the documents' lengths alone."""
        return -(-len(self.plan(next(iter(self._plans), 0))) // self.batch_size)

    def total_batches(self, epochs: int) -> int:
        """Batches in so many epochs."""
        return epochs * self.batches_per_epoch

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch, and index in it, of the batch that comes after `step` batches."""
        return divmod(step, self.batches_per_epoch)

    def at(self, step: int) -> tuple[float, Batch]:
        """The batch that comes after `step` batches, and how many epochs are done with it."""
        return (step + 1) / self.batches_per_epoch, self.batch(*self.locate(step))

    def batch(self, epoch: int, index: int) -> Batch:
        """This process's share of batch `index` of an epoch."""
        start = index * self.batch_size
        rows = share_of(self.plan(epoch)[start : start + self.batch_size], self.rank, self.ranks, [])
        return collate(self.store, rows, self.pad_id, self.mask_prompt)

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """All batches of an epoch."""
        return (self.batch(epoch, index) for index in range(self.batches_per_epoch))

    def plan(self, epoch: int) -> list[list[int]]:
        """The rows of an epoch: every document once, no row longer than `max_length`."""
        epoch = epoch if self.shuffle else 0
        if epoch not in self._plans:
            self._plans.clear()
            self._plans[epoch] = self._make_plan(epoch)
        return self._plans[epoch]

    def _make_plan(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.store)) if self.shuffle else np.arange(len(self.store))
        if not self.pack:
            return [[document] for document in order.tolist()]
        rows = pack(self.store.lengths, order, self.max_length)
        return [rows[i] for i in random.permutation(len(rows)).tolist()] if self.shuffle else rows


def share_of(rows: list[T], rank: int, ranks: int, nothing: T) -> list[T]:
    """Rows `rank`, `rank + ranks`, ..; filled up with `nothing` where others have one more, so that all have as many.

    Processes that share a model have to call it equally often.
    """
    most = -(-len(rows) // ranks)
    own = rows[rank::ranks]
    return own + [nothing] * (most - len(own))


def pack(lengths: NDArray[np.int64], order: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each document, longest first, into the row that it leaves the least space in.

    Args:
        lengths: [N], tokens of each document, at most `capacity`.
        order: permutation of the documents, which decides among those of one length.
        capacity: tokens that a row holds.
    """
    assert lengths.max() <= capacity, "documents were cut at a longer max_length than the rows have"
    by_length = order[np.argsort(-lengths[order], kind="stable")]
    rows: list[list[int]] = []
    with_space: defaultdict[int, list[int]] = defaultdict(list)  # [c]: rows that have c tokens left
    spaces = 0  # bit c is set where with_space[c] is not empty: the next larger space is one shift away
    for document, length in zip(by_length.tolist(), lengths[by_length].tolist(), strict=True):
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = with_space[space].pop()
            if not with_space[space]:
                spaces ^= 1 << space
            rows[row].append(document)
        else:
            space, row = capacity, len(rows)
            rows.append([document])
        left = space - length
        with_space[left].append(row)
        spaces |= 1 << left
    return rows
