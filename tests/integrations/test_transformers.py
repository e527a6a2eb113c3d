"""`WmtpEarlyStoppingCallback` in a real Trainer, on a model of four weights."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from wmtp.errors import CheckpointError, SettingsError
from wmtp.integrations.transformers import WmtpEarlyStoppingCallback
from wmtp.stopping import LossEarlyStopping
from wmtp.stopping.history import read_histories
from wmtp.stopping.replay import replay

NAN_FILTER = pytest.mark.filterwarnings("ignore:the Trainer replaces a NaN:UserWarning")  # ours, see the test of it

# Falls until step 6, then lingers with noise: five evaluations after 6 none is better, so patience 5 stops at 11.
CURVE = [3.0, 2.4, 2.6, 2.0, 2.1, 1.5] + [1.5 + 0.1 * (1 + (7 * i) % 5) for i in range(100)]
PATIENCE = {"monitor": "eval_loss", "patience": 5}
STOPS_AT = 11


class KilledError(Exception):
    pass


class Kill(TrainerCallback):
    """Ends the process, as it were, at the k-th event of a kind."""

    def __init__(self, event: str, k: int):
        self._left = k
        setattr(self, event, self._count)

    def _count(self, *args: object, **kwargs: object) -> None:
        self._left -= 1
        if self._left == 0:
            raise KilledError


class Line(nn.Module):
    """Least squares; the loss may be something else in chosen steps."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(3, 1)
        nn.init.zeros_(self.w.weight)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.w(x).squeeze(-1)
        return {"loss": ((y - labels) ** 2).mean(), "logits": y}


class Scripted(Trainer):
    """The evaluation at a step tells the number that the script has for it."""

    curves: ClassVar[Mapping[str, list[float]]] = {"eval_loss": CURVE}

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        told = {
            name: c[self.state.global_step - 1] for name, c in self.curves.items() if name.startswith(metric_key_prefix)
        }
        output.metrics.update(told)
        return output


def rows(n: int, seed: int = 0, noise: float = 0.5) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + noise * torch.randn(n, generator=generator)
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


def make(
    folder: Path, *callbacks: TrainerCallback, kind: type[Trainer] = Scripted, evals: Any = None, **settings: Any
) -> Trainer:
    torch.manual_seed(0)
    args = {
        "max_steps": 40,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "logging_steps": 1,
        "save_total_limit": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "dataloader_pin_memory": False,
    } | settings
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **args)
    evals = rows(4, 1) if evals is None else evals
    trainer = kind(Line(), arguments, train_dataset=rows(64), eval_dataset=evals, callbacks=list(callbacks))  # type: ignore[arg-type]
    trainer.remove_callback(trainer.callback_handler.callbacks[-1].__class__)  # the printer
    return trainer


def run(
    folder: Path,
    settings: Mapping[str, object] = PATIENCE,
    resume: bool = False,
    also: Iterable[TrainerCallback] = (),
    **args: Any,
) -> tuple[WmtpEarlyStoppingCallback, Trainer]:
    ours = WmtpEarlyStoppingCallback(settings)
    trainer = make(folder, ours, *also, **args)
    trainer.train(resume_from_checkpoint=True if resume else None)
    return ours, trainer


def has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoint-*/trainer_state.json"))


def until_the_end(folder: Path, new: Any, event: str, k: int, **args: Any) -> tuple[Any, Trainer]:
    """Trains with a callback of `new()`, killed at every k-th event and resumed in a new Trainer, until a run ends."""
    for _ in range(60):
        callback = new()
        trainer = make(folder, callback, Kill(event, k), **args)
        try:
            trainer.train(resume_from_checkpoint=True if has_checkpoint(folder) else None)
        except KilledError:
            continue
        return callback, trainer
    raise AssertionError("never ends")


def stock() -> EarlyStoppingCallback:
    return EarlyStoppingCallback(early_stopping_patience=5)


BEST = {"metric_for_best_model": "eval_loss", "greater_is_better": False, "load_best_model_at_end": True}


@pytest.fixture(scope="module")
def stop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The stop of an uninterrupted run."""
    ours, trainer = run(tmp_path_factory.mktemp("whole"))
    assert (trainer.state.global_step, ours.stop_reason) == (STOPS_AT, "converged")
    assert ours.stop is not None
    return ours.stop


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_killed_every_few_evaluations_it_stops_where_the_uninterrupted_run_does(
    tmp_path: Path, stop: dict[str, Any], k: int
) -> None:
    ours, trainer = until_the_end(tmp_path, lambda: WmtpEarlyStoppingCallback(PATIENCE), "on_save", k)
    assert trainer.state.global_step == STOPS_AT
    assert ours.stop == stop


def test_the_stock_callback_does_not(tmp_path: Path) -> None:
    """The same curve and patience, default settings: right if it is never killed, else it never stops or does late."""
    whole = make(tmp_path / "whole", stock(), **BEST)
    whole.train()
    assert whole.state.global_step == STOPS_AT
    _, killed = until_the_end(tmp_path / "killed", stock, "on_save", 4, max_steps=16, **BEST)
    assert killed.state.global_step >= 16, "a count that starts anew every 4 evaluations never gets to 5"


@pytest.mark.parametrize(
    ("event", "n"),
    [("on_log", 5), ("on_log", 16), ("on_evaluate", 4), ("on_evaluate", 6), ("on_evaluate", 11), ("on_save", 2)],
)
def test_a_kill_between_two_checkpoints_changes_nothing(
    tmp_path: Path, stop: dict[str, Any], event: str, n: int
) -> None:
    """At the n-th event of its kind; a checkpoint every third step."""
    also = [Kill(event, n)]
    with pytest.raises(KilledError):
        run(tmp_path, also=also, save_steps=3)
    ours, _ = run(tmp_path, resume=has_checkpoint(tmp_path), save_steps=3)
    assert ours.stop == stop


def test_genuine_training_killed_and_resumed(tmp_path: Path) -> None:
    settings = {"monitor": "eval_loss", "patience": 4, "min_delta": 0.01}
    common: dict[str, Any] = {"kind": Trainer, "learning_rate": 0.1, "evals": rows(16, 1)}
    whole, trainer = run(tmp_path / "whole", settings, **common)
    assert whole.stop is not None
    assert 5 < whole.stop["step"] == trainer.state.global_step < 40
    ours, again = until_the_end(
        tmp_path / "killed", lambda: WmtpEarlyStoppingCallback(settings), "on_save", 5, **common
    )
    assert ours.stop == whole.stop
    assert torch.equal(again.model.w.weight, trainer.model.w.weight)  # type: ignore[union-attr]


def test_a_checkpoint_knows_its_own_step(tmp_path: Path) -> None:
    run(tmp_path, max_steps=9)
    saved = json.loads((tmp_path / "checkpoint-9" / "trainer_state.json").read_text())
    state = saved["stateful_callbacks"]["WmtpEarlyStoppingCallback"]["attributes"]["progress"]["session"]
    kept = {key: state["stopper"][key] for key in ("step", "best_value", "best_step", "counter")}
    assert kept == {"step": 9, "best_value": 1.5, "best_step": 6, "counter": 3}


def test_the_log_and_the_evaluation_of_a_step_are_one_observation(tmp_path: Path) -> None:
    """A check needs the monitored eval_loss; the norm counts only where it is there at a check."""
    settings = {"monitor": "eval_loss", "grad_norm_threshold": 1e-9, "grad_norm_window_size": 3}
    ours, _ = run(tmp_path, settings)
    assert ours.stop is not None
    assert (ours.stop["step"], ours.stop["reason"]) == (3, "gradient_unstable")


def test_several_evaluation_sets_are_one_observation(tmp_path: Path) -> None:
    class Two(Scripted):
        curves: ClassVar = {"eval_a_loss": [1.0] * 100, "eval_b_loss": CURVE}

    evals = {"a": rows(4, 1), "b": rows(4, 2)}
    ours, trainer = run(tmp_path, {"monitor": "eval_b_loss", "patience": 5}, kind=Two, evals=evals)
    assert (trainer.state.global_step, ours.stopper.counter) == (STOPS_AT, 5)
    assert [row["step"] for row in trainer.state.log_history if "early_stopping" in row] == [STOPS_AT]


def test_the_training_loss_is_seen_at_every_row(tmp_path: Path) -> None:
    class Breaks(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            if not self.model.training or self.state.global_step < 3:  # type: ignore[union-attr]
                return loss
            return (loss[0] * math.nan, loss[1]) if isinstance(loss, tuple) else loss * math.nan

    common: dict[str, Any] = {"kind": Breaks, "eval_steps": 4, "save_steps": 1, "max_steps": 9}
    ours, _ = run(tmp_path / "a", {"monitor": "loss"}, logging_nan_inf_filter=False, **common)
    assert ours.stop is not None
    assert (ours.stop["step"], ours.stop["reason"]) == (6, "non_finite")  # NaN at 4, 5, 6
    json.loads((tmp_path / "a" / "checkpoint-6" / "trainer_state.json").read_text())

    with pytest.warns(UserWarning, match="logging_nan_inf_filter=False"):
        hidden, trainer = run(tmp_path / "b", {"monitor": "loss"}, **common)
    assert hidden.stop is None
    assert trainer.state.global_step == 9


def test_a_stopped_run_stays_stopped(tmp_path: Path, stop: dict[str, Any]) -> None:
    _, first = run(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for _ in range(2):
        ours, trainer = run(tmp_path, resume=True)
        assert ours.stop == stop
        assert trainer.state.global_step == STOPS_AT
        assert torch.equal(trainer.model.w.weight, first.model.w.weight)  # type: ignore[union-attr]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before

    on = WmtpEarlyStoppingCallback(PATIENCE, continue_stopped=True)
    trainer = make(tmp_path, on, max_steps=14)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 14
    assert on.stopper.counter <= 3


def test_changed_settings_win_with_a_warning(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, also=[Kill("on_save", 8)])
    with pytest.warns(UserWarning, match="patience 5 -> 7"):
        ours, _ = run(tmp_path, {**PATIENCE, "patience": 7}, resume=True)
    assert ours.stop is not None
    assert ours.stop["step"] == STOPS_AT + 2


def test_the_reason_is_told(tmp_path: Path, stop: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "wmtp"):
        ours, trainer = run(tmp_path, save_steps=50)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("wmtp")]
    assert said == [f"early stopping at step 11 (converged): {stop['message']}"]
    assert "eval_loss did not improve" in stop["message"]
    # The stop is saved although no checkpoint is due, and its reason stands in the log too.
    saved = json.loads((tmp_path / "checkpoint-11" / "trainer_state.json").read_text())
    row = saved["log_history"][-1]
    assert {"step": row["step"], **row["early_stopping"]} == stop == ours.stop
    assert trainer.state.log_history[-2] == row  # the last one is the Trainer's summary


@pytest.mark.parametrize(
    ("monitor", "args", "match"),
    [
        ("eval_los", {}, "first evaluation row has: no metric 'eval_los', did you mean eval_loss"),
        ("lss", {}, "first training row has: no metric 'lss', did you mean loss"),
        ("eval_loss", {"eval_strategy": "no"}, "eval_strategy="),
        ("loss", {"logging_strategy": "no"}, "logging_strategy="),
    ],
)
def test_a_metric_that_is_not_there_is_refused(tmp_path: Path, monitor: str, args: dict[str, Any], match: str) -> None:
    trainer = make(tmp_path, WmtpEarlyStoppingCallback({"monitor": monitor}), **args)
    with pytest.raises(SettingsError, match=match):
        trainer.train()
    assert trainer.state.global_step <= 1


def test_settings_that_mean_nothing_here_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="load_best_model_at_end"):
        WmtpEarlyStoppingCallback({"restore_best": True})
    with pytest.raises(SettingsError, match="pationce: no such setting; did you mean patience"):
        WmtpEarlyStoppingCallback({"pationce": 3})
    two = [WmtpEarlyStoppingCallback(PATIENCE), WmtpEarlyStoppingCallback(PATIENCE)]
    with pytest.raises(SettingsError, match="more than one"):
        make(tmp_path, *two).train()


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    run(tmp_path, max_steps=3)
    path = tmp_path / "checkpoint-3" / "trainer_state.json"
    saved = json.loads(path.read_text())
    progress = saved["stateful_callbacks"]["WmtpEarlyStoppingCallback"]["attributes"]["progress"]
    del progress["session"]["stopper"]
    path.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="lacks stopper"):
        run(tmp_path, resume=True)


def test_a_checkpoint_made_without_it(tmp_path: Path) -> None:
    make(tmp_path, max_steps=4).train()
    with pytest.warns(UserWarning, match="it starts at step 4"):
        ours, trainer = run(tmp_path, resume=True)  # the Trainer alone fails at the first save here
    # Checks from step 5 on: 2.1, then 1.5 at 6 is the best.
    assert trainer.state.global_step == STOPS_AT
    assert ours.stopper.best_step == 6


def test_with_the_trainers_own_restoring(tmp_path: Path, stop: dict[str, Any]) -> None:
    """The Trainer then builds another object; that one goes on."""
    with pytest.raises(KilledError):
        run(tmp_path, also=[Kill("on_save", 4)])
    with pytest.warns(UserWarning, match="restores itself"):
        _, trainer = run(tmp_path, resume=True, restore_callback_states_from_checkpoint=True)
    (ours,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, WmtpEarlyStoppingCallback))
    assert ours.stop == stop


def test_evaluations_outside_of_training_do_not_count(tmp_path: Path) -> None:
    """Those of `eval_on_start` on a resume, which an uninterrupted run does not make, and those after training."""
    settings, common = {**PATIENCE, "patience": 3}, {"eval_steps": 2}
    whole, _ = run(tmp_path / "whole", settings, **common)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", settings, also=[Kill("on_save", 7)], **common)
    ours, trainer = run(tmp_path / "killed", settings, resume=True, eval_on_start=True, **common)
    assert ours.stop == whole.stop
    assert whole.stop is not None
    before = ours.progress["session"]["stopper"]
    trainer.curves = {"eval_loss": [0.0] * 40}
    trainer.evaluate()
    assert ours.progress["session"]["stopper"] == before


def test_a_step_with_an_evaluation_takes_one_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them costs one collective."""
    asked: list[int] = []
    monkeypatch.setattr("wmtp.integrations.transformers.rank_zeros", lambda own: (asked.append(own.step), own)[1])
    run(tmp_path, max_steps=6, eval_steps=2)
    assert asked == [1, 2, 3, 4, 5, 6]


def test_a_second_training_begins_anew(tmp_path: Path, stop: dict[str, Any]) -> None:
    ours, _ = run(tmp_path / "a")
    trainer = make(tmp_path / "b", ours)
    trainer.train()
    assert trainer.state.global_step == STOPS_AT
    assert ours.stop == stop


def replayed(folder: Path, settings: Mapping[str, object]) -> tuple[int | None, str]:
    (history,) = read_histories(folder)
    stopper = LossEarlyStopping({"enabled": True, **settings})
    then = replay(history, stopper, name="rule")
    return then.step, then.reason


@NAN_FILTER
def test_rules_on_the_log_and_on_evaluations_killed_resumed_and_replayed(tmp_path: Path) -> None:
    """Rows at every step, evaluations at every second one: all that was logged at a step is one observation."""
    both = [{"patience": {"patience": 3}}, {"target": {"monitor": "loss", "below": 3.0, "checks": 2}}]
    settings = {"monitor": "eval_loss", "rule": {"any": [{"all": both}, {"divergence": {"monitor": "loss"}}]}}
    common: dict[str, Any] = {"eval_steps": 2, "learning_rate": 0.03}
    whole, _ = run(tmp_path / "whole", settings, **common)
    assert whole.stop is not None
    assert whole.stop["reason"] == "converged+target_reached"
    ours, _ = until_the_end(tmp_path / "killed", lambda: WmtpEarlyStoppingCallback(settings), "on_save", 3, **common)
    assert ours.stop == whole.stop
    for folder in ("whole", "killed"):
        assert replayed(tmp_path / folder, settings) == (whole.stop["step"], whole.stop["reason"])


def test_a_second_evaluation_may_undo_the_decision_on_the_first(tmp_path: Path) -> None:
    """Both have to be flat: a is from step 4 on, b was at 4 and no more at 5, where it improves."""

    class Two(Scripted):
        curves: ClassVar = {
            "eval_a_loss": [2.0, 1.0] + [1.0] * 40,
            "eval_b_loss": [3.0, 2.0, 2.0, 2.0, 1.0] + [1.0] * 40,
        }

    def flat(name: str) -> dict[str, Any]:
        return {"patience": {"monitor": f"eval_{name}_loss", "patience": 2 if name == "b" else 3}}

    settings = {"monitor": "eval_a_loss", "rule": {"all": [flat("a"), flat("b")]}}
    ours, trainer = run(tmp_path, settings, kind=Two, evals={"a": rows(4, 1), "b": rows(4, 2)})
    assert ours.stop is not None
    # a has been flat three times at step 5, b two times at 4; b improves at 5, and is flat two times again at 7.
    assert trainer.state.global_step == ours.stop["step"] == 7
    assert replayed(tmp_path, settings) == (7, "converged")


def test_tokens_need_the_trainers_count(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="include_num_input_tokens_seen"):
        run(tmp_path, {"monitor": "eval_loss", "rule": {"budget": {"tokens": 100}}})
