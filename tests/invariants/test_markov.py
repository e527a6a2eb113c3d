"""The best loss is known for a Markov chain: H(x[t+k] | x[t]), from powers of its transition matrix.

A head that is trained on anything else than token t+k of the same document stays above it by .1-.7 nats (a wrong shift,
targets across documents); one that sees what it should not gets below (a leak). All losses are measured on fresh data
and compared with what the true P^k gives on the same data, so that the noise of the sample cancels: with N targets and
a gap g the difference has a standard deviation of about sqrt(2 g / N), under .001 here. "Never below" is tested as no
more than .002 below.

To see the figures: pytest -o log_cli=true --log-cli-level=INFO tests/invariants/test_markov.py
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from wmtp.model import mtp
from wmtp.model.mtp import MTPModel
from wmtp.objectives import weighted_mtp
from wmtp.objectives.weighted_mtp import WeightedMTP
from wmtp.ops.schedule import lr_factor
from wmtp.ops.targets import shift_targets
from wmtp.training.optim import make_optimizer
from wmtp.training.step import Hardware, evaluate, make_scaler, train_step
from wmtp.types import Batch
from wmtp.weighting.uniform import Uniform

LOG = logging.getLogger(__name__)
V, H = 12, 4
TOLERANCE, BELOW = 0.02, 0.002
CPU = Hardware(torch.device("cpu"))
Chain = NDArray[np.int64]


def transitions() -> NDArray[np.float64]:
    """[V,V], P[i,j] the probability of j after i: mostly a few steps ahead on a ring, and slow to mix."""
    P = np.full((V, V), 0.05 / V)
    for i in range(V):
        stay = 0.1 + 0.3 * (i % 3) / 2
        for step, share in ((0, stay), (1, 0.85 * (1 - stay)), (2, 0.12 * (1 - stay)), (5, 0.03 * (1 - stay))):
            P[i, (i + step) % V] += 0.95 * share
    assert np.allclose(P.sum(axis=1), 1.0)
    return P


P = transitions()
START = np.linalg.matrix_power(P, 4096)[0]  # stationary
CUMULATIVE = P.cumsum(axis=1)
CUMULATIVE[:, -1] = 1.0
POWERS = [np.linalg.matrix_power(P, k) for k in range(H + 2)]


def sample(random: np.random.Generator, length: int) -> Chain:
    states = np.empty(length, dtype=np.int64)
    states[0] = random.choice(V, p=START)
    for t in range(1, length):
        states[t] = np.searchsorted(CUMULATIVE[states[t - 1]], random.random(), side="right")
    return states


def long_chains(random: np.random.Generator) -> list[list[Chain]]:
    """Rows of one chain each."""
    return [[sample(random, 48)] for _ in range(12)]


def short_chains(random: np.random.Generator) -> list[list[Chain]]:
    """Rows of six short chains, every second one a copy of the first: whoever sees other documents knows what comes."""
    rows = []
    for _ in range(12):
        first = sample(random, int(random.integers(6, 11)))
        others = [sample(random, int(random.integers(2, 9))) for _ in range(3)]
        rows.append([first, others[0], first, others[1], first, others[2]])
    return rows


def optimum(rows: list[list[Chain]], shift: int = 0) -> list[float]:
    """Mean of -log P^(k+shift)[x[t], x[t+k+shift]] over the targets of each head, one after the other."""
    losses: list[list[float]] = [[] for _ in range(H)]
    for row in rows:
        for chain in row:
            for k in range(1, H + 1):
                ahead = k + shift
                for t in range(len(chain) - ahead):
                    losses[k - 1].append(-math.log(POWERS[ahead][chain[t], chain[t + ahead]]))
    return [sum(values) / len(values) for values in losses]


def trained(make_trunk: Any, make_batch: Any, rows_of: Any, steps: int, head: Any) -> MTPModel:
    """A model of one layer a head, after `steps` updates on data that is never seen twice."""
    # A padding token's embedding would never be learnt (the library's choice), so there is none.
    trunk = make_trunk(vocab_size=V, num_hidden_layers=1, initializer_range=0.1, pad_token_id=None)
    model = MTPModel(trunk, H, head).train()
    objective = WeightedMTP(Uniform(), H)
    optimizer = make_optimizer(model, "adamw", lr=1e-2, weight_decay=0.0, betas=(0.9, 0.95))
    random = np.random.default_rng(0)
    for step in range(steps):
        batch = as_batch(make_batch, rows_of(random))
        factor = lr_factor(step, steps, 10, "cosine")
        train_step(model, objective, batch, optimizer, make_scaler(CPU), CPU, lr_factor=factor, grad_clip=1.0)
    return model


def as_batch(make_batch: Callable[..., Batch], rows: list[list[Chain]]) -> Batch:
    return make_batch([[(chain.tolist(), 0) for chain in row] for row in rows])


def measured(model: MTPModel, make_batch: Any, rows: list[list[Chain]]) -> list[float]:
    """Held-out loss of each head."""
    metrics = evaluate(model, WeightedMTP(Uniform(), H), [as_batch(make_batch, rows)], CPU)
    assert metrics is not None
    return [metrics[f"loss_h{k}"] for k in range(1, H + 1)]


def report(title: str, best: list[float], reached: list[float]) -> list[float]:
    gaps = [r - b for r, b in zip(reached, best, strict=True)]
    LOG.info(title)
    for k, (b, r, gap) in enumerate(zip(best, reached, gaps, strict=True), start=1):
        LOG.info(f"  head {k}: optimum {b:.4f}, reached {r:.4f}, gap {gap:+.4f}")
    return gaps


def fresh(rows_of: Any) -> list[list[Chain]]:
    random = np.random.default_rng(1)
    return [row for _ in range(40) for row in rows_of(random)]


def test_the_chain_can_tell_heads_apart() -> None:
    entropies = [float(-(START[:, None] * Q * np.log(Q)).sum()) for Q in POWERS[1:]]
    assert all(later - earlier > 0.1 for earlier, later in itertools.pairwise(entropies))
    assert entropies[-1] < math.log(V)


@pytest.mark.parametrize(
    ("rows_of", "head", "steps"),
    [(long_chains, "transformer", 150), (short_chains, "transformer", 250), (long_chains, "residual", 300)],
    ids=["long-transformer", "packed-transformer", "long-residual"],
)
def test_every_head_comes_to_the_optimum_and_not_below(
    rows_of: Any, head: Any, steps: int, make_trunk: Any, make_batch: Any
) -> None:
    rows = fresh(rows_of)
    model = trained(make_trunk, make_batch, rows_of, steps, head)
    gaps = report(f"{rows_of.__name__}, {head}", optimum(rows), measured(model, make_batch, rows))
    assert max(gaps) <= TOLERANCE
    assert min(gaps) >= -BELOW


class TestTheseTestsCanFail:
    """Each with a mistake put in."""

    def test_targets_shifted_by_one_more(
        self, make_trunk: Any, make_batch: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def shifted(labels: Tensor, documents: Tensor, horizon: int) -> Tensor:
            return shift_targets(labels, documents, horizon + 1)[..., 1:]

        for module in (mtp, weighted_mtp):
            monkeypatch.setattr(module, "shift_targets", shifted)
        rows = fresh(long_chains)
        reached = measured(trained(make_trunk, make_batch, long_chains, 60, "transformer"), make_batch, rows)
        gaps = report("long_chains, shifted by one more", optimum(rows), reached)
        assert min(gaps) >= 0.1
        assert reached == pytest.approx(optimum(rows, shift=1), abs=0.05), "the wrong thing, and learnt well"

    def test_targets_across_documents(self, make_trunk: Any, make_batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def across(labels: Tensor, documents: Tensor, horizon: int) -> Tensor:
            return shift_targets(labels, torch.zeros_like(documents), horizon)

        for module in (mtp, weighted_mtp):
            monkeypatch.setattr(module, "shift_targets", across)
        rows = fresh(short_chains)
        reached = measured(trained(make_trunk, make_batch, short_chains, 60, "transformer"), make_batch, rows)
        assert min(report("short_chains, targets across documents", optimum(rows), reached)) >= 0.1

    def test_attention_across_documents(
        self, make_trunk: Any, make_batch: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The library then takes a row of several documents for one.
        monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda positions: None)
        rows = fresh(short_chains)
        reached = measured(trained(make_trunk, make_batch, short_chains, 130, "transformer"), make_batch, rows)
        assert min(report("short_chains, attention across documents", optimum(rows), reached)) < -5 * BELOW
