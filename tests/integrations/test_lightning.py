"""`WmtpEarlyStopping` in a real Lightning Trainer, on a model of four weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wmtp.errors import SettingsError, UserError

pl = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint  # noqa: E402

from wmtp.integrations.lightning import WmtpEarlyStopping  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning's use of torch
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),  # on machines with many cores
    pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]

# By validation: falls until the 6th, then lingers with noise, so patience 5 stops at the 11th.
CURVE = [3.0, 2.4, 2.6, 2.0, 2.1, 1.5] + [1.5 + 0.1 * (1 + (7 * i) % 5) for i in range(100)]
PATIENCE = {"monitor": "val_loss", "patience": 5}
STOPS_AT = 11


class KilledError(Exception):
    pass


class Kill(Callback):
    """Ends the process, as it were, at the start of the training batch after `k` of them."""

    def __init__(self, k: int):
        self._left = k

    def on_train_batch_start(self, *args: object) -> None:
        self._left -= 1
        if self._left < 0:
            raise KilledError


class Line(pl.LightningModule):
    """Least squares; the validation loss is scripted by global step."""

    def __init__(self, curve: Callable[[int], float] | None = lambda step: CURVE[step - 1]):
        super().__init__()
        self.w = nn.Linear(3, 1)
        nn.init.zeros_(self.w.weight)
        nn.init.zeros_(self.w.bias)
        self._curve = curve

    def _loss(self, batch: list[Tensor]) -> Tensor:
        return ((self.w(batch[0]).squeeze(-1) - batch[1]) ** 2).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = self._loss(batch)
        scripted = None if self._curve is None or self.trainer.sanity_checking else self._curve(self.global_step)
        self.log("val_loss", loss if scripted is None else torch.tensor(scripted))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.02)


def rows(n: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.5 * torch.randn(n, generator=generator)
    return list(zip(x, y, strict=True))


def make(folder: Path, *callbacks: Callback, saves: Mapping[str, Any] | None = None, **args: Any) -> Any:
    keep = ModelCheckpoint(folder, save_last=True, **({"save_on_train_epoch_end": False} if saves is None else saves))
    options = {"max_steps": 40, "val_check_interval": 1, "check_val_every_n_epoch": None} | args
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, keep],
        **options,
    )


def fit(folder: Path, callback: Callback, *also: Callback, model: Line | None = None, **args: Any) -> Any:
    torch.manual_seed(0)
    trainer = make(folder, callback, *also, **args)
    data = DataLoader(rows(40), batch_size=4), DataLoader(rows(8, 1), batch_size=8)
    last = folder / "last.ckpt"
    trainer.fit(model or Line(), *data, ckpt_path=str(last) if last.exists() else None)
    return trainer


def until_the_end(
    folder: Path, new: Callable[[], Callback], k: int, model: Callable[[], Line] = Line, **args: Any
) -> tuple[Any, Any]:
    for _ in range(60):
        callback = new()
        try:
            return callback, fit(folder, callback, Kill(k), model=model(), **args)
        except KilledError:
            continue
    raise AssertionError("never ends")


@pytest.fixture(scope="module")
def stop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The stop of an uninterrupted run."""
    ours = WmtpEarlyStopping(PATIENCE)
    trainer = fit(tmp_path_factory.mktemp("whole"), ours)
    assert (trainer.global_step, ours.stop_reason) == (STOPS_AT, "converged")
    assert ours.stop is not None
    return ours.stop


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_killed_every_few_validations_it_stops_where_the_uninterrupted_run_does(
    tmp_path: Path, stop: dict[str, Any], k: int
) -> None:
    ours, trainer = until_the_end(tmp_path, lambda: WmtpEarlyStopping(PATIENCE), k)
    assert trainer.global_step == STOPS_AT
    assert ours.stop == stop


def test_so_does_lightnings_own(tmp_path: Path) -> None:
    _, trainer = until_the_end(tmp_path, lambda: EarlyStopping("val_loss", min_delta=1e-4, patience=5), 4)
    assert trainer.global_step == STOPS_AT


def by_epoch(step: int) -> float:
    return CURVE[step // 10 - 1]


EPOCHWISE: dict[str, Any] = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "max_steps": 200, "saves": {}}


@pytest.mark.parametrize("monitor", ["val_loss", "train_loss_epoch"])
def test_validation_once_per_epoch(tmp_path: Path, monitor: str) -> None:
    """Of an epoch's end, a metric of validation and a training average are one observation each; 10 steps an epoch."""
    settings = {"monitor": monitor, "patience": 5, "min_delta": 1e-4 if monitor == "val_loss" else 0.02}
    whole = WmtpEarlyStopping(settings)
    fit(tmp_path / "whole", whole, model=Line(by_epoch), **EPOCHWISE)
    assert whole.stop is not None
    if monitor == "val_loss":
        assert (whole.stop["step"], whole.stopper.counter) == (110, 5)
    ours, _ = until_the_end(
        tmp_path / "killed", lambda: WmtpEarlyStopping(settings), 30, model=lambda: Line(by_epoch), **EPOCHWISE
    )
    assert ours.stop == whole.stop


class Note(Callback):
    """What was logged at each optimizer step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, *args: object) -> None:
        self.losses.setdefault(trainer.global_step, trainer.callback_metrics["train_loss"].item())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_step_metrics_are_read_once_per_optimizer_step(tmp_path: Path, accumulate: int) -> None:
    note, ours = Note(), WmtpEarlyStopping({"monitor": "train_loss", "patience": 3}, step_metrics=["train_loss"])
    trainer = fit(
        tmp_path, ours, note, val_check_interval=5, accumulate_grad_batches=accumulate, max_steps=60, saves={}
    )
    losses = [loss for step, loss in sorted(note.losses.items()) if step > 0]
    best = counter = 0
    for step, loss in enumerate(losses, 1):  # patience by hand
        best, counter = (step, 0) if best == 0 or loss < losses[best - 1] - 1e-4 else (best, counter + 1)
        if counter == 3:
            break
    assert counter == 3
    assert ours.stop is not None
    assert (ours.stop["step"], ours.stopper.best_step, ours.stopper.best_value) == (step, best, losses[best - 1])
    assert trainer.global_step == step


def test_a_stop_by_step_metrics_survives_kills(tmp_path: Path) -> None:
    """Checkpoints are saved at the end of training batches here; the data order is the same each epoch."""
    args: dict[str, Any] = {"val_check_interval": 1000, "saves": {"every_n_train_steps": 1}}
    losses = [3.0, 2.0, 1.0, 1.1, 1.2, 1.3, 0.5] + [0.6] * 40

    class Scripted(Line):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.log("train_loss", torch.tensor(losses[self.global_step]), on_step=True)
            return self._loss(batch)

    def new() -> WmtpEarlyStopping:
        return WmtpEarlyStopping({"monitor": "train_loss", "patience": 4}, step_metrics=["train_loss"])

    whole = new()
    fit(tmp_path / "whole", whole, model=Scripted(), **args)
    assert whole.stop is not None
    assert whole.stop["step"] == STOPS_AT
    ours, _ = until_the_end(tmp_path / "killed", new, 3, model=Scripted, **args)
    assert ours.stop == whole.stop


def test_a_stopped_run_stays_stopped(tmp_path: Path, stop: dict[str, Any]) -> None:
    first = Line()
    fit(tmp_path, WmtpEarlyStopping(PATIENCE), model=first)
    for _ in range(2):
        ours, model = WmtpEarlyStopping(PATIENCE), Line()
        trainer = fit(tmp_path, ours, model=model)
        assert trainer.global_step == STOPS_AT
        assert ours.stop == stop
        assert torch.equal(model.w.weight, first.w.weight)
    on = WmtpEarlyStopping(PATIENCE, continue_stopped=True)
    assert fit(tmp_path, on, max_steps=14).global_step == 14
    assert on.stopper.counter <= 3


def test_validation_outside_of_training_does_not_count(tmp_path: Path) -> None:
    ours = WmtpEarlyStopping(PATIENCE)
    trainer = fit(tmp_path, ours)
    before = ours.state_dict()["stopper"]
    trainer.validate(Line(lambda step: 0.0), DataLoader(rows(8, 1), batch_size=8), verbose=False)
    assert ours.state_dict()["stopper"] == before


def test_changed_settings_win_with_a_warning(tmp_path: Path) -> None:
    """Lightning's own takes the checkpoint's patience."""
    with pytest.raises(KilledError):
        fit(tmp_path, WmtpEarlyStopping(PATIENCE), Kill(8))
    ours = WmtpEarlyStopping({**PATIENCE, "patience": 7})
    with pytest.warns(UserWarning, match="patience 5 -> 7"):
        fit(tmp_path, ours)
    assert ours.stop is not None
    assert ours.stop["step"] == STOPS_AT + 2


@pytest.mark.parametrize(
    ("settings", "step_metrics", "match"),
    [
        ({"monitor": "val_los"}, [], "after validation there is: no metric 'val_los', did you mean val_loss"),
        ({"monitor": "train_lss"}, ["train_lss"], "after a training step there is: no metric 'train_lss'"),
    ],
)
def test_a_metric_that_is_not_there_is_refused(
    tmp_path: Path, settings: dict[str, Any], step_metrics: list[str], match: str
) -> None:
    with pytest.raises(SettingsError, match=match):
        fit(tmp_path, WmtpEarlyStopping(settings, step_metrics))


def test_settings_that_mean_nothing_here_are_refused() -> None:
    with pytest.raises(SettingsError, match="ModelCheckpoint"):
        WmtpEarlyStopping({"restore_best": True})
    with pytest.raises(SettingsError, match="counts no tokens"):
        WmtpEarlyStopping({"rule": {"patience": {"patience": 1000, "unit": "tokens"}}})
    with pytest.raises(SettingsError, match="'train_loss' is not monitored; these settings watch val_loss"):
        WmtpEarlyStopping(PATIENCE, step_metrics=["train_loss"])


def test_without_lightning_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wmtp.integrations.lightning")
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(UserError, match="pip install lightning"):
        importlib.import_module("wmtp.integrations.lightning")
