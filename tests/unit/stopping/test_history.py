"""Logs of several makers give the observations that a live rule would have seen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from wmtp.errors import DataError
from wmtp.stopping.history import History, histories_of, read_histories
from wmtp.types import Observation

CURVES = Path(__file__).parents[4] / "shared" / "data" / "curves"


def one(path: Path) -> History:
    (history,) = read_histories(path)
    return history


def jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def state(path: Path, *rows: dict[str, Any], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"log_history": rows, **more}))
    return path


def test_rows_of_a_run_are_its_observations(tmp_path: Path) -> None:
    place = {"epoch": 0.5, "tokens": 70, "seconds": 1.5, "time": 1e9}
    log = jsonl(
        tmp_path / "some run" / "metrics.jsonl",
        {"stage": "pretrain", "step": 1, "value_loss": 0.1 + 0.2, **place},
        {"stage": "train", "step": 0, "eval_loss": "NaN", **place},
        {"stage": "train", "step": 1, "loss": "-Infinity", "total_steps": 9, "early_stopping": {"fired": []}, **place},
        {"stage": "train", "step": 2, "loss": 2, "eval_loss": 3.0, "after_decision": ["eval_loss"], **place},
    )
    for path in (log, log.parent):
        pretrain, train = read_histories(path)
        assert (pretrain.name, pretrain.stage, train.name, train.stage) == ("some run", "pretrain", "some run", "train")
        assert pretrain.observations == (Observation(1, {"value_loss": 0.1 + 0.2}, 0.5, 70, 1.5),)
        held_out, first, last = train.observations
        assert (held_out.step, list(held_out.metrics)) == (0, ["eval_loss"])
        assert math.isnan(held_out.metrics["eval_loss"])
        assert first == Observation(1, {"loss": -math.inf}, 0.5, 70, 1.5, 9)
        assert last.metrics == {"loss": 2}
        assert train.decisions == {1: {"fired": []}}
        assert train.metrics == ["eval_loss", "loss"]
        assert train.points("loss") == [(1, -math.inf), (2, 2)]


def test_a_cut_off_last_line_is_left_out_and_other_damage_is_not(tmp_path: Path) -> None:
    log = jsonl(tmp_path / "metrics.jsonl", {"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0})
    whole = log.read_text()
    for end in range(whole.index("\n") + 1, len(whole) - 1):
        log.write_text(whole[:end])
        assert one(log).points("loss") == [(1, 1.0)]
    log.write_text(whole[:-1])  # the line is whole, its end is not yet written
    assert one(log).points("loss") == [(1, 1.0), (2, 2.0)]
    log.write_text("{broken\n" + whole)
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: not valid JSON"):
        read_histories(log)
    jsonl(log, {"step": 1, "loss": 1.0}, {"loss": 1.0}, {"step": 3})
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: step None is not"):
        read_histories(log)
    jsonl(log, {"step": 1, "loss": 1.0}, [1, 2], {"step": 3})
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not a JSON object"):
        read_histories(log)


@pytest.mark.parametrize("step", [None, -1, 1.5, "3", True, math.nan, math.inf])
def test_a_step_is_a_whole_number(step: object) -> None:
    with pytest.raises(DataError, match=r"place:7: step .* is not a whole number"):
        histories_of("run", [("place:7", {"step": step, "loss": 1.0})])


def test_training_and_evaluation_of_one_step_are_one_observation(tmp_path: Path) -> None:
    path = state(
        tmp_path / "out" / "trainer_state.json",
        {"step": 10, "epoch": 0.5, "loss": 2.0, "num_input_tokens_seen": 80},
        {"step": 10, "epoch": 0.5, "eval_loss": 2.5},
        {"step": 20, "epoch": 1.0, "loss": math.nan},
        {"step": 20, "epoch": 1.0, "eval_loss": 2.25},
        {"step": 20, "epoch": 1.0, "train_loss": 9.0, "train_runtime": 8.0, "total_flos": 1e9},
        max_steps=40,
    )
    first, second = one(path).observations
    assert first == Observation(10, {"loss": 2.0, "eval_loss": 2.5}, 0.5, 80, 0.0, 40)
    assert (second.step, second.epoch, second.tokens, second.total_steps) == (20, 1.0, 80, 40)
    assert second.metrics["eval_loss"] == 2.25
    assert math.isnan(second.metrics["loss"])
    assert "train_loss" not in one(path).metrics
    assert one(path).name == one(tmp_path / "out").name == "out"


def test_the_newest_checkpoint_tells_of_the_whole_run(tmp_path: Path) -> None:
    for steps in (900, 1000, 200):
        rows = [{"step": step, "loss": 1.0} for step in range(100, steps + 1, 100)]
        state(tmp_path / "out" / f"checkpoint-{steps}" / "trainer_state.json", *rows)
    history = one(tmp_path / "out")
    assert (history.name, history.observations[-1].step) == ("out", 1000)


def test_where_a_log_goes_back_the_later_rows_hold() -> None:
    rows = [{"step": step, "loss": float(step), "early_stopping": {"fired": []}} for step in (1, 2, 3, 4)]
    again = [{"step": step, "loss": -float(step)} for step in (3, 5)]
    (history,) = histories_of("run", [("", row) for row in rows + again])
    assert history.points("loss") == [(1, 1.0), (2, 2.0), (3, -3.0), (5, -5.0)]
    assert list(history.decisions) == [1, 2, 3]


def test_a_damaged_trainer_state_says_where(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text('{"log_history": [\n{"step": 1, "loss": 2.0},\n{"step"')
    with pytest.raises(DataError, match=r"trainer_state\.json:3: not valid JSON"):
        read_histories(path)
    for text, said in (("[]", "no log_history"), ('{"log_history": [1]}', r"log_history\[0\] is not")):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            read_histories(path)


@pytest.mark.parametrize("text", ["", "\n", "step,loss\n"])
def test_an_empty_log_is_refused(tmp_path: Path, text: str) -> None:
    for name in ("metrics.csv", "metrics.jsonl"):
        (tmp_path / name).write_text(text if name == "metrics.csv" else "")
        with pytest.raises(DataError, match=f"{name}.*(empty|nothing is logged)"):
            read_histories(tmp_path / name)


def test_lightnings_csv(tmp_path: Path) -> None:
    """Training and validation in rows of their own, empty cells in between."""
    path = tmp_path / "version_3" / "metrics.csv"
    path.parent.mkdir()
    path.write_text("epoch,step,train_loss,val_loss\n0,49,2.5,\n0,99,2.0,\n0,99,,2.25\n1,149,nan,\n")
    history = one(path.parent)
    assert history.name == "version_3"
    assert [(seen.step, seen.epoch) for seen in history.observations] == [(49, 0), (99, 0), (149, 1)]
    assert history.points("val_loss") == [(99, 2.25)]
    assert history.points("train_loss")[:2] == [(49, 2.5), (99, 2.0)]
    assert math.isnan(history.points("train_loss")[2][1])


def test_names_of_columns(tmp_path: Path) -> None:
    """The step's is found however it is written; metrics keep theirs, also two that differ by case alone."""
    path = tmp_path / "export.csv"
    header = '\ufeff"Step","Loss","loss"," eval/loss ",note,_timestamp\r\n'
    path.write_text(header + '1,1.0,2.0,3.0,"a, b",5\r\n2,1.5,2.5,,,6\r\n')
    history = one(path)
    assert (history.name, history.metrics) == ("export", ["Loss", "loss", " eval/loss "])
    assert history.points("Loss") == [(1, 1.0), (2, 1.5)]
    assert history.points(" eval/loss ") == [(1, 3.0)]


def test_mlflows_long_csv_has_a_run_per_id(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = ["a,loss,2.0,1,5", "a,loss,1.0,2,6", "a,eval_loss,3.0,2,6", "b,loss,9.0,1,5"]
    path.write_text("run_id,key,value,step,timestamp\n" + "\n".join(rows) + "\n")
    a, b = read_histories(path)
    assert (a.name, b.name) == ("a", "b")
    assert [seen.metrics for seen in a.observations] == [{"loss": 2.0}, {"loss": 1.0, "eval_loss": 3.0}]
    assert b.points("loss") == [(1, 9.0)]


def test_a_damaged_csv_says_where(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for text, said in (
        ("step,loss\n1,2\n2\n3,4\n", r"log\.csv:3: 1 cells, but 2 columns"),
        ("step,loss\n1,2\n2,x\n3,4\n4,5\n", r"log\.csv:3: loss = 'x' is not a number"),
        ("step,loss\nx,2\n", r"log\.csv:2: step = 'x' is not a number"),
        ("time,loss\n1,2\n", r"log\.csv:1: no column step; there are time, loss"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            read_histories(path)
    path.write_text("step,loss,eval_loss\n1,2,3\n2,1")  # cut off while it is written
    assert one(path).points("loss") == [(1, 2.0)]


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path, said in (
        (tmp_path, "no log in there"),
        (tmp_path / "gone", "no such file"),
        (tmp_path / "notes.txt", "no log of a run"),
    ):
        with pytest.raises(DataError, match=said):
            read_histories(path)


@pytest.mark.skipif(not CURVES.is_dir(), reason="the curves are not here")
def test_real_logs() -> None:
    """63 of transformers' Trainer: each step once, in order, and every loss in the file is in the history."""
    files = sorted(CURVES.glob("*.json"))
    assert len(files) == 63
    for file in files:
        raw = json.loads(file.read_text())
        history = one(file)
        steps = [seen.step for seen in history.observations]
        assert steps == sorted({row["step"] for row in raw["log_history"] if "train_runtime" not in row}), file
        for metric in ("loss", "eval_loss"):
            expected = {row["step"]: row[metric] for row in raw["log_history"] if metric in row}
            assert dict(history.points(metric)) == pytest.approx(expected, nan_ok=True), file
        assert history.observations[0].total_steps == raw["max_steps"]
