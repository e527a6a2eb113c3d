"""The report holds what the log says, and is one safe file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wmtp.errors import UserError
from wmtp.report import write_report


def write_run(folder: Path, *, ended: bool) -> None:
    folder.mkdir()
    rows = [
        {"stage": "train", "step": 0, "eval_loss": 5.0, "eval_loss_h1": 4.5, "eval_loss_h2": 5.5,
         "early_stopping": {"distance": 1.0}},
        {"stage": "train", "step": 1, "loss": 4.8765, "grad_norm": "NaN", "lr": 1e-3},
        {"stage": "train", "step": 2, "loss": 4.5, "grad_norm": 2.0, "lr": 1e-3, "eval_loss": 4.1234,
         "eval_loss_h1": 3.25, "eval_loss_h2": 4.75, "early_stopping": {"distance": 0.5}},
    ]  # fmt: skip
    half_written = '{"stage": "train", "st'
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + half_written)
    if ended:
        stage = {"total_steps": 2, "stop_reason": "converged", "message": "<b>no better</b> in 3 checks",
                 "tokens": 12345, "seconds": 6.5, "best_step": 2}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps({"train": stage}))


def test_a_finished_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a&b", ended=True)
    page = write_report(tmp_path / "a&b").read_text(encoding="utf-8")
    assert "<h1>a&amp;b</h1>" in page
    assert "<b>converged</b>" in page
    assert "&lt;b&gt;no better" in page, "what comes from a run is text, never markup"
    assert "12,345 tokens" in page
    for cell in ("5.0000", "4.1234", "3.2500", "4.7500"):
        assert f"<td>{cell}</td>" in page
    assert "best, step 2" in page
    assert "4.8765" in page, "the training loss is in the chart"
    assert 'src="http' not in page, "opens without a network"


def test_a_run_under_way(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ended=False)
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "3 steps logged, not ended" in page


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        write_report(tmp_path)
