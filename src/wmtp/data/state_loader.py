"""Rewards of tokens, and batches of hidden states with them: a pure function of (seed, epoch), as in `loader`.

Shapes: B rows, S positions, D hidden; N documents, R response tokens of all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmtp.data.cache import TokenStore, open_or_write, open_sealed, seal
from wmtp.data.loader import share_of
from wmtp.data.states import response_offsets
from wmtp.ops.spread import TokenSpread, spread_reward
from wmtp.types import Batch, StateBatch

NOBODY = -1
"""In the place of a document: there is none."""


def open_or_build_rewards(folder: Path, key: str, build: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
    """[N], rewards of documents from the cache in `folder`, computed and kept there if absent or damaged.

    Args:
        folder: the cache.
        key: `content_key` of the documents and of whatever gives the rewards.
        build: computes them.

    Raises:
        DataError: `folder` can't be written.
    """

    def write(new: Path) -> None:
        np.save(new / "rewards.npy", build())
        seal(new, {})

    def read(entry: Path) -> NDArray[np.float64] | None:
        found = open_sealed(entry)
        return None if found is None else found[0].get("rewards")

    return open_or_write(folder, key, "cache of rewards", read, write)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRewards:
    """Rewards of all response tokens of a data set.

    Attributes:
        values: [R] fp32, one document's after another's.
        offsets: [N+1] int64; document i has values[offsets[i]:offsets[i+1]].
        prompts: [N] int64, how many tokens of a document are its prompt.
    """

    values: Tensor
    offsets: Tensor
    prompts: Tensor

    @staticmethod
    def spread(
        store: TokenStore, rewards: NDArray[np.floating], mode: TokenSpread, attention: NDArray[np.float32] | None
    ) -> TokenRewards:
        """Spread each document's reward over its response.

        Args:
            store: the documents.
            rewards: [N], standardised.
            mode: `wmtp.ops.spread.spread_reward`.
            attention: [R], for the mode of this name (`StateStore.attention`).
        """
        assert len(rewards) == len(store), "one reward a document"
        offsets = torch.from_numpy(response_offsets(store))
        documents = torch.repeat_interleave(torch.arange(len(store)), offsets.diff())[None]
        whole = torch.from_numpy(np.array(rewards, dtype=np.float64))[documents]
        paid = None if attention is None else torch.from_numpy(np.array(attention))[None]
        values = spread_reward(whole, torch.ones_like(documents, dtype=torch.bool), documents, mode, paid)
        return TokenRewards.of_responses(store, values[0])

    @staticmethod
    def of_responses(store: TokenStore, values: Tensor) -> TokenRewards:
        """`values` [R] for the response tokens of `store`'s documents."""
        offsets = torch.from_numpy(response_offsets(store))
        return TokenRewards(values, offsets, torch.from_numpy(store.prompt_lengths.astype(np.int64)))

    def to(self, device: torch.device) -> TokenRewards:
        """The same on `device`."""
        return TokenRewards(self.values.to(device), self.offsets.to(device), self.prompts.to(device))

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rewards [B,S] fp32 of a batch's tokens, 0 outside of responses, and [B,S] bool which are in one."""
        documents, positions = batch.documents.to(self.values.device), batch.positions.to(self.values.device)
        inside, documents = documents >= 0, documents.clamp_min(0)
        place = positions - self.prompts[documents]
        response = inside & (place >= 0)
        index = torch.where(response, self.offsets[documents] + place, 0)
        return torch.where(response, self.values[index], 0.0), response


@dataclass(frozen=True, slots=True)
class StateLoader:
    """Batches of responses, each document once an epoch.

    Attributes:
        read: [B,S,D] hidden states of the responses of some documents, zeros behind the shorter ones
            (`StateStore.read`).
        rewards: of their tokens.
        batch_size: documents in a batch, over all micro-batches and processes; the last of an epoch may have fewer.
        seed: of the order, with the epoch; >= 0.
        shuffle: false keeps one order, the same in every epoch (held-out data).
        rank, ranks: which of how many processes this is; each has its share of a batch (`loader.share_of`).
    """

    read: Callable[[Sequence[int]], Tensor]
    rewards: TokenRewards
    batch_size: int
    seed: int
    shuffle: bool = True
    rank: int = 0
    ranks: int = 1
    _orders: dict[int, list[int]] = field(default_factory=dict[int, list[int]], init=False, repr=False)

    def __len__(self) -> int:
        return len(self.rewards.prompts)

    @property
    def batches_per_epoch(self) -> int:
        """The same in every epoch."""
        return -(-len(self) // self.batch_size)

    def total_batches(self, epochs: int) -> int:
        """Batches in so many epochs."""
        return epochs * self.batches_per_epoch

    def at(self, step: int) -> tuple[float, StateBatch]:
        """The batch that comes after `step` batches, and how many epochs are done with it."""
        return (step + 1) / self.batches_per_epoch, self.batch(*divmod(step, self.batches_per_epoch))

    def batch(self, epoch: int, index: int) -> StateBatch:
        """This process's share of batch `index` of an epoch."""
        chosen = self.order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        own = share_of(chosen, self.rank, self.ranks, NOBODY)
        documents = torch.tensor(own)[:, None]
        hidden = self.read([chosen[0] if document == NOBODY else document for document in own])
        known = documents.clamp_min(0)
        starts = self.rewards.offsets[known]
        place = torch.arange(hidden.shape[1])
        inside = (place < self.rewards.offsets[known + 1] - starts) & (documents != NOBODY)
        rewards = self.rewards.values[torch.where(inside, starts + place, 0)]
        if NOBODY in own:
            hidden = hidden.masked_fill((documents == NOBODY)[..., None], 0.0)
        return StateBatch(hidden, torch.where(inside, rewards, 0.0), torch.where(inside, documents, NOBODY))

    def batches(self, epoch: int = 0) -> Iterator[StateBatch]:
        """All batches of an epoch."""
        return (self.batch(epoch, index) for index in range(self.batches_per_epoch))

    def order(self, epoch: int) -> list[int]:
        """The documents of an epoch."""
        epoch = epoch if self.shuffle else 0
        if epoch not in self._orders:
            self._orders.clear()
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(len(self)) if self.shuffle else np.arange(len(self))
            self._orders[epoch] = order.tolist()
        return self._orders[epoch]
