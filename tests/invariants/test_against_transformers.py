"""With one head and no weighting, training is plain fine-tuning: the library's loss, gradients and `Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp.model.mtp import MTPModel
from wmtp.model.trunk import CausalTrunk
from wmtp.objectives.weighted_mtp import WeightedMTP
from wmtp.ops.schedule import lr_factor
from wmtp.training.optim import make_optimizer
from wmtp.training.step import Hardware, make_scaler, train_step
from wmtp.types import IGNORE, Batch
from wmtp.weighting.uniform import Uniform

STEPS, ROWS, MICRO, LR, DECAY, BETAS, CLIP = 10, 4, 2, 1e-3, 0.1, (0.9, 0.95), 1.0


def as_transformers(batch: Batch) -> dict[str, torch.Tensor]:
    return {
        "input_ids": batch.tokens,
        "labels": batch.labels,
        "attention_mask": (batch.documents >= 0).long(),
    }


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "gpt_neox", "mistral-window"])
def test_loss_and_gradients(kind: str, make_lm: Any, make_batch: Any, random_documents: Any) -> None:
    batch = make_batch([[document] for document in random_documents([17, 12, 5, 9])])
    # Weights of an ordinary size, so that gradients are of order one and 1e-6 is near the rounding of fp32.
    theirs, lm = (make_lm(kind, initializer_range=0.05) for _ in range(2))
    reference = theirs(**as_transformers(batch))
    reference.loss.backward()
    model = MTPModel(CausalTrunk(lm, kind), horizon=1)
    objective = WeightedMTP(Uniform(), horizon=1)

    output = objective(model, batch)
    loss = output.loss / objective.num_targets(batch)
    loss.backward()

    assert loss.item() == pytest.approx(reference.loss.item(), abs=1e-6)
    largest = 0.0
    for name, p in theirs.named_parameters():
        own = lm.get_parameter(name).grad
        assert p.grad is not None
        assert own is not None
        largest = max(largest, float((own - p.grad).abs().max()))
        assert p.grad.abs().max() > 1e-4, f"{name} has a gradient to compare"
    assert largest <= 1e-6


def train_with_the_trainer(lm: Any, rows: Batch, schedule: str, folder: Path) -> list[float]:
    """Ten updates by the library's `Trainer`; the loss of each (over all its micro-batches)."""
    from transformers import Trainer, TrainingArguments

    losses: list[float] = []

    class Recording(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            losses.append(loss.item())  # the log's own figure is rounded
            return loss

    data = as_transformers(rows)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=ROWS // MICRO,
        max_steps=STEPS,
        learning_rate=LR,
        weight_decay=DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        lr_scheduler_type=schedule,
        warmup_steps=0,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    Recording(
        model=lm,
        args=arguments,
        train_dataset=[{name: value[i] for name, value in data.items()} for i in range(STEPS * ROWS)],
    ).train()
    halves = range(0, len(losses), ROWS // MICRO)
    return [sum(losses[i : i + ROWS // MICRO]) for i in halves]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_ten_updates_follow_the_trainer(
    schedule: Any, make_lm: Any, make_batch: Any, random_documents: Any, tmp_path: Path
) -> None:
    lengths = torch.randint(3, 15, (STEPS * ROWS,), generator=torch.Generator().manual_seed(3)).tolist()
    rows = make_batch([[document] for document in random_documents(lengths, seed=4, vocabulary=8)])
    # Prompts and lengths differ, so the two micro-batches of an update have unequal numbers of targets.
    assert len({int((rows.labels[i : i + MICRO, 1:] != IGNORE).sum()) for i in range(0, STEPS * ROWS, MICRO)}) > 5
    theirs, lm = (make_lm(initializer_range=0.05) for _ in range(2))
    start = {name: p.detach().clone() for name, p in lm.named_parameters()}
    expected = train_with_the_trainer(theirs, rows, schedule, tmp_path)

    model = MTPModel(CausalTrunk(lm, "llama"), horizon=1)
    model.train()
    objective = WeightedMTP(Uniform(), horizon=1)
    optimizer = make_optimizer(model, "adamw", lr=LR, weight_decay=DECAY, betas=BETAS)
    hardware = Hardware(torch.device("cpu"), micro_batch_size=MICRO)
    found, norms = [], []
    for step in range(STEPS):
        metrics = train_step(
            model,
            objective,
            rows.rows(step * ROWS, (step + 1) * ROWS),
            optimizer,
            make_scaler(hardware),
            hardware,
            lr_factor=lr_factor(step, STEPS, 0, schedule),
            grad_clip=CLIP,
        )
        found.append(metrics["loss"])
        norms.append(metrics["grad_norm"])

    assert any(norm > CLIP for norm in norms), "clipping is a part of what is compared"
    assert found == pytest.approx(expected, abs=2e-6)
    assert expected[0] - expected[-1] > 0.2, "it learnt something"
    with torch.no_grad():
        moved = max(float((p - start[name]).abs().max()) for name, p in theirs.named_parameters())
        apart = max(float((lm.get_parameter(name) - p).abs().max()) for name, p in theirs.named_parameters())
    assert moved > 5e-3
    # fp32 rounds these weights by 1e-8 each time, and AdamW, which divides by the size of a gradient, magnifies the
    # rounding of tiny ones: 5e-8 is what is seen here, twenty times below the bound; the way is 5,000 times as long.
    assert apart <= 1e-6
