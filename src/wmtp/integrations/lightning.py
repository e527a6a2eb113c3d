"""Early stopping for Lightning's `Trainer` (`lightning.pytorch`; the older package `pytorch_lightning` is another one).

    trainer = Trainer(..., callbacks=[WmtpEarlyStopping({"monitor": "val_loss", "patience": 10})])

One observation per optimizer step. What is in `trainer.callback_metrics` is read at the end of each validation and of
each training epoch; `step_metrics`, if named, after each optimizer step. All that is read at one step is one
observation, decided anew with each part, so every checkpoint, whenever it is saved, knows what was told before it.

Ranks: rank 0's observation is broadcast once per decision, and every rank feeds it to the same pure rule from the same
state. So all hold the same decision, reason and evidence. Log with `sync_dist=True`, or rank 0's share of the data
decides alone.
"""

# ruff: noqa: ARG002 (the hooks' signatures are Lightning's)
from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from wmtp.errors import SettingsError, UserError
from wmtp.integrations.session import Session, Told, numbers
from wmtp.stopping import EarlyStoppingConfig, Observation

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.trainer.states import TrainerFn
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "lightning":
        raise
    raise UserError("wmtp.integrations.lightning needs the package lightning: pip install lightning") from error

_RESTORE_BEST = "load the best checkpoint of ModelCheckpoint(monitor=...)"
_log = logging.getLogger(__name__)


class WmtpEarlyStopping(Told, Callback):
    """Stops a Lightning `Trainer` by wmtp's rules; resumes with `fit(ckpt_path=...)`; says why.

    Settings that have changed since the checkpoint win, with a warning. A run that it stopped stays stopped.

    Args:
        settings: of early stopping, see docs/stopping.md; in a mapping `enabled` is true unless it says otherwise.
            Metrics have the names that the module logs.
        step_metrics: monitored metrics that are read after each optimizer step; log them with `on_step=True`.
        continue_stopped: train on although early stopping had ended the run; the rule then starts anew.

    Raises:
        EarlyStoppingConfigError: if the settings are not valid; lists everything that is wrong.
        SettingsError: for `restore_best`, for tokens, which Lightning does not count, for step metrics that are not
            monitored; and during training, for a monitored metric that is not logged.
    """

    def __init__(
        self,
        settings: EarlyStoppingConfig | Mapping[str, object],
        step_metrics: Iterable[str] = (),
        continue_stopped: bool = False,
    ):
        super().__init__()
        self._session = Session(settings, continue_stopped, _RESTORE_BEST)
        self._step_metrics = tuple(step_metrics)
        if strange := [name for name in self._step_metrics if name not in self._session.monitors]:
            watched = ", ".join(self._session.monitors)
            raise SettingsError(f"step_metrics: {strange[0]!r} is not monitored; these settings watch {watched}")
        if self._session.counts_tokens():
            raise SettingsError("early_stopping.rule: Lightning counts no tokens: use steps, epochs or seconds")
        self._loaded = self._stop_is_ours = False
        self._step = 0

    # ---- what a checkpoint keeps ----

    def state_dict(self) -> dict[str, Any]:
        """All that the next decision depends on, as JSON data."""
        return self._session.get_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there. `CheckpointError` if it is malformed."""
        self._session.load_state(state_dict)
        self._loaded = True

    # ---- Lightning's hooks ----

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock; a stopped run is over before its next batch."""
        if not self._loaded:
            self._session.reset()
        self._loaded = self._stop_is_ours = False
        self._step = trainer.global_step
        self._session.start_clock()
        if self.stopper.should_stop_flag:
            trainer.should_stop = True
            self._say(trainer, "training had been stopped and stays so")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step (not after every batch of an accumulation): reads `step_metrics`."""
        if not self._step_metrics or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        told = numbers(trainer.callback_metrics)
        self._decide(trainer, {name: told[name] for name in self._step_metrics if name in told})
        self._require(trainer, self._step_metrics, "after a training step there is")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads what the validation, and training before it, has logged."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._read(trainer)
        if not _once_per_epoch(trainer):
            self._require(trainer, self._others(), "after validation there is")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads what the epoch has logged: its training averages come after its validation."""
        validated = bool(trainer.num_val_batches) and trainer.enable_validation
        if _once_per_epoch(trainer) or not validated:
            self._read(trainer)
            self._require(trainer, self._others(), "after an epoch there is")

    # ---- inside ----

    def _read(self, trainer: Trainer) -> None:
        told = numbers(trainer.callback_metrics)
        self._decide(trainer, {name: value for name, value in told.items() if name not in self._step_metrics})

    def _others(self) -> list[str]:
        return [name for name in self._session.monitors if name not in self._step_metrics]

    def _require(self, trainer: Trainer, names: Iterable[str], when: str) -> None:
        if not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            self._session.require(names, self._session.latest_names, when)

    def _decide(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        planned = trainer.estimated_stepping_batches
        own = Observation(
            step=trainer.global_step,
            metrics=metrics,
            epoch=_epochs_done(trainer),
            seconds=self._session.seconds,
            total_steps=int(planned) if 0 < planned < float("inf") else 0,
        )
        had = self.stop
        stops = self._session.observe(trainer.strategy.broadcast(own)).stop
        if stops and not trainer.should_stop:
            self._stop_is_ours = True
        elif not stops and self._stop_is_ours:  # what was read later at this step changed the verdict
            trainer.should_stop = self._stop_is_ours = False
        if stops:
            trainer.should_stop = True
            if had is None:
                self._say(trainer, "early stopping")

    def _say(self, trainer: Trainer, what: str) -> None:
        if self.stop is not None and trainer.is_global_zero:
            _log.warning("%s at step %d (%s): %s", what, self.stop["step"], self.stop["reason"], self.stop["message"])


def _once_per_epoch(trainer: Trainer) -> bool:
    # Lightning's own callbacks tell it in the same way.
    return trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1


def _epochs_done(trainer: Trainer) -> float:
    batches = trainer.num_training_batches
    share = (trainer.fit_loop.batch_idx + 1) / batches if 0 < batches < float("inf") else 0.0
    return trainer.current_epoch + share
