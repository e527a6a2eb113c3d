"""An update does not depend on how its batch is cut, nor a document's loss on what it is packed with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wmtp.model.mtp import MTPModel
from wmtp.objectives.weighted_mtp import WeightedMTP
from wmtp.protocols import TokenWeighting
from wmtp.training.optim import make_optimizer
from wmtp.training.step import Hardware, make_scaler, train_step
from wmtp.types import IGNORE, Batch
from wmtp.weighting.uniform import Uniform

# Every weighting has to be here: name -> how it is made.
WEIGHTINGS: dict[str, Any] = {"uniform": Uniform}
LR = 1e-3
LENGTHS = [15, 3, 8, 1, 6, 11, 2, 4, 7, 5, 12, 9]
PACKED = [[0], [1, 2, 3], [4, 7], [5], [6, 8], [9], [10], [11, 3, 1]]
"""Eight rows of 15, 12, 10, 11, 9, 5, 12 and 13 tokens."""

every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS.keys())
both_heads = pytest.mark.parametrize("head", ["transformer", "residual"])


@pytest.fixture(scope="module")
def rows(make_batch: Any, random_documents: Any) -> Batch:
    documents = random_documents(LENGTHS)
    return make_batch([[documents[i] for i in row] for row in PACKED], extra_padding=2)


def make_model(make_trunk: Any, head: Any, *, detach: bool = False) -> MTPModel:
    """Weights of an ordinary size, heads away from the copies that they begin as."""
    model = MTPModel(make_trunk(initializer_range=0.05), 4, head, detach_heads=detach)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.heads.parameters():
            p.add_(torch.randn(p.shape, generator=random) * 0.02)
    return model


def update(
    model: MTPModel, weighting: TokenWeighting, batch: Batch, kind: Any, micro: int | None, **options: Any
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """Metrics, gradients and weights of one update."""
    objective = WeightedMTP(weighting, 4, options.pop("coefficients", [1.6, 1.2, 0.8, 0.4]))
    optimizer = make_optimizer(model, kind, lr=LR, weight_decay=0.1, betas=(0.9, 0.95))
    hardware = Hardware(torch.device("cpu"), micro_batch_size=micro)
    metrics = train_step(
        model, objective, batch, optimizer, make_scaler(hardware), hardware, lr_factor=1.0, grad_clip=1.0
    )
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return metrics, gradients, {name: p.detach().clone() for name, p in model.named_parameters()}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@every_weighting
@both_heads
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_cut_into_micro_batches(
    weighting: Any, head: Any, detach: bool, kind: str, make_trunk: Any, rows: Batch
) -> None:
    whole = update(make_model(make_trunk, head, detach=detach), weighting(), rows, kind, None)
    counts = [int((rows.labels[i : i + 2] != IGNORE).sum()) for i in (0, 2, 4, 6)]
    assert len(set(counts)) > 1, "a mean of the micro-batches' means would differ"
    for micro in (8, 4, 2, 1, 3):
        metrics, gradients, weights = update(
            make_model(make_trunk, head, detach=detach), weighting(), rows, kind, micro
        )
        assert apart(gradients, whole[1]) <= 1e-6
        # AdamW's first step is lr * g/(|g| + 1e-8). Where a gradient is as small as the rounding of its sum (1e-8), the
        # step is mostly rounding: at this rate some 1e-5 in a few entries, at the recipe's 1.2e-5 far below 1e-6.
        for name, weight in weights.items():
            difference = (weight - whole[2][name]).abs()
            clear = torch.ones_like(weight, dtype=torch.bool) if kind == "sgd" else whole[1][name].abs() > 1e-5
            assert float((difference * clear).max()) <= 1e-6, name
            assert float(difference.max()) * 1.2e-5 / LR <= 1e-6, name
        assert metrics == pytest.approx(whole[0], abs=2e-6)


@every_weighting
@both_heads
def test_packing_changes_no_documents_loss(
    weighting: Any, head: Any, make_trunk: Any, make_batch: Any, random_documents: Any
) -> None:
    documents = random_documents(LENGTHS)
    model = make_model(make_trunk, head)
    objective = WeightedMTP(weighting(), 4, [1.6, 1.2, 0.8, 0.4])
    with torch.no_grad():
        alone = [objective(model, make_batch([[document]])) for document in documents]
        for packed in (
            [list(range(12))],
            [[0, 1, 2, 3, 4, 5], [11, 10, 9, 8, 7, 6]],
            [[3, 1, 6], [0, 2], [5, 4, 8, 7, 9, 11, 10]],
        ):
            batch = make_batch([[documents[i] for i in row] for row in packed], extra_padding=1)
            output = model(batch)
            weighted = objective.weighting(batch, output) * output.ce * objective.coefficients
            order = [i for row in packed for i in row]
            assert sorted(order) == list(range(12))
            for place, i in enumerate(order):
                loss = float(weighted[batch.documents == place].sum())
                assert loss == pytest.approx(float(alone[i].loss), abs=1e-5, rel=1e-6)
            together = objective(model, batch)
            assert float(together.loss) == pytest.approx(sum(float(x.loss) for x in alone), rel=1e-6)
            for name, sums in together.metrics.items():
                expected = sum(x.metrics[name] for x in alone)
                assert sums.tolist() == pytest.approx(expected.tolist(), rel=1e-6), name
            assert int(objective.num_targets(batch)) == int(together.metrics["loss"][1])


@every_weighting
@both_heads
def test_packing_changes_no_update(
    weighting: Any, head: Any, make_trunk: Any, make_batch: Any, random_documents: Any, rows: Batch
) -> None:
    documents = random_documents(LENGTHS)
    once = [i for row in PACKED for i in row]  # two short documents are in there twice, as in the packed rows
    alone = make_batch([[documents[i]] for i in once])
    first = update(make_model(make_trunk, head), weighting(), rows, "sgd", None)
    second = update(make_model(make_trunk, head), weighting(), alone, "sgd", 5)
    assert apart(first[1], second[1]) <= 1e-6
    assert apart(first[2], second[2]) <= 1e-6
    assert first[0] == pytest.approx(second[0], abs=2e-6)


@every_weighting
def test_padding_changes_nothing(weighting: Any, make_trunk: Any, rows: Batch) -> None:
    garbage = Batch(torch.where(rows.documents >= 0, rows.tokens, 96), rows.labels, rows.documents, rows.positions)
    restarting = Batch(
        rows.tokens, rows.labels, rows.documents,
        torch.where(rows.documents >= 0, rows.positions, (rows.documents < 0).cumsum(1) - 1),
    )  # fmt: skip
    whole = update(make_model(make_trunk, "transformer"), weighting(), rows, "sgd", None)
    for changed in (garbage, restarting):
        assert (
            apart(update(make_model(make_trunk, "transformer"), weighting(), changed, "sgd", None)[1], whole[1]) <= 1e-6
        )


@every_weighting
def test_a_weight_is_mean_one_over_each_document_and_detached(weighting: Any, make_trunk: Any, rows: Batch) -> None:
    output = make_model(make_trunk, "transformer")(rows)
    weights = weighting()(rows, output)
    valid = output.targets != IGNORE
    assert weights.shape == output.ce.shape
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    assert (weights >= 0).all()
    assert not weights[~valid].any()
    for number in rows.documents.unique().tolist():
        inside = (rows.documents == number)[..., None] & valid
        if inside.any():
            assert float(weights[inside].mean()) == pytest.approx(1.0, abs=1e-6)
