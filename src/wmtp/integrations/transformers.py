"""Early stopping for transformers' `Trainer`.

    trainer = Trainer(..., callbacks=[WmtpEarlyStoppingCallback({"monitor": "eval_loss", "patience": 10})])

One observation per step holds all that the Trainer logged at it: the training row if there is one, and the evaluations.
A decision is made at a training row unless an evaluation is about to follow, and at each evaluation. What is logged
elsewhere (`trainer.log` in a loss function) is part of the next decision. All of that comes before the Trainer saves
(`Trainer._maybe_log_save_evaluate`), so the state in a checkpoint knows its step's metrics.

Ranks: rank 0's observation is broadcast once per decision, and every rank feeds it to the same pure rule from the same
state. So all hold the same decision, reason and evidence, whatever their own metrics and clocks say.
"""

# ruff: noqa: ARG002 (the events' signatures are transformers')
from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from wmtp.errors import CheckpointError, SettingsError
from wmtp.integrations.session import Session, Told, numbers
from wmtp.stopping import EarlyStoppingConfig, Observation

_RESTORE_BEST = "use TrainingArguments(load_best_model_at_end=True)"
_log = logging.getLogger(__name__)


class WmtpEarlyStoppingCallback(Told, TrainerCallback, ExportableState):
    """Stops a `Trainer` by wmtp's rules; resumes by itself; says why.

    Its state is in each checkpoint's `trainer_state.json` and is loaded on `train(resume_from_checkpoint=...)`, without
    `restore_callback_states_from_checkpoint`. Settings that have changed since win, with a warning. A run that it
    stopped stays stopped: the Trainer then draws one batch, as it can't be kept from that, but learns nothing from it.

    Args:
        settings: of early stopping, see docs/stopping.md; in a mapping `enabled` is true unless it says otherwise.
            Metrics have the names that the Trainer logs: "loss", "grad_norm", "eval_loss", "eval_...".
        continue_stopped: train on although early stopping had ended the run; the rule then starts anew.

    Raises:
        EarlyStoppingConfigError: if the settings are not valid; lists everything that is wrong.
        SettingsError: for `restore_best`; and during training, for a monitored metric that is not logged.
    """

    def __init__(self, settings: EarlyStoppingConfig | Mapping[str, object], continue_stopped: bool = False):
        self._session = Session(settings, continue_stopped, _RESTORE_BEST)
        self._forget()

    def _forget(self) -> None:
        self._listening = self._stop_is_ours = False
        self._pending: dict[str, float] = {}
        self._known: set[str] = set()
        self._to_check: set[str] = set()
        self._checked: set[str] = set()
        self._resumed_at: int | None = None
        self._row: dict[str, Any] | None = None
        self._held: tuple[int, float, int] | None = None

    # ---- what a checkpoint keeps ----

    def state(self) -> dict[str, Any]:
        """See `ExportableState`."""
        settings = self.stopper.get_state()["config"]
        args = {"settings": settings, "continue_stopped": self._session.continue_stopped}
        return {"args": args, "attributes": {"progress": self.progress}}

    @property
    def progress(self) -> dict[str, Any]:
        """All that the next decision depends on, as JSON data. Setting it goes on from there."""
        return {"session": self._session.get_state(), "pending": dict(self._pending)}

    @progress.setter
    def progress(self, saved: Mapping[str, Any]) -> None:
        if set(saved) != {"session", "pending"}:
            raise CheckpointError(f"early-stopping state in trainer_state.json is damaged: it has {sorted(saved)}")
        self._session.load_state(saved["session"])
        self._pending = dict(saved["pending"])

    # ---- the Trainer's events ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes up the state of the checkpoint that training goes on from; checks what can be checked by now."""
        self._forget()
        self._check_arguments(args)
        saved = cast("dict[str, Any]", state.stateful_callbacks)  # typed as the list that it is made from
        name = type(self).__name__
        if isinstance(saved.get(name), list):
            raise SettingsError(f"more than one {name} in a Trainer: combine their rules in one (rule: {{any: [..]}})")
        if state.global_step == 0:
            self._session.reset()
        elif name not in saved:
            self._session.reset()
            warnings.warn(f"the checkpoint has no state of {name}: it starts at step {state.global_step}", stacklevel=2)
            # The Trainer saves only states of callbacks that the checkpoint knows, and fails at any other.
            saved[name] = self.state()
        else:
            self.progress = saved[name]["attributes"]["progress"]
        self._resumed_at = state.global_step or None
        self._listening = True
        self._session.start_clock()
        if self.stopper.should_stop_flag:
            self._held = (state.global_step, state.epoch, state.num_input_tokens_seen)
            control.should_training_stop = True
            self._say(state, "training had been stopped and stays so,")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> None:
        """Takes in a row; decides if it is a training row that no evaluation will follow."""
        row = logs or {}
        summary = {"train_loss", "train_runtime"} <= set(row)  # of the whole training, after its end
        if self._deaf_at(state) or summary:
            return
        self._pending |= numbers(row)
        if "loss" in row:
            self._to_check.add("training")
            if not control.should_evaluate:
                self._decide(args, state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> None:
        """Takes in an evaluation and decides."""
        if not self._deaf_at(state):
            self._pending |= numbers(metrics or {})
            self._to_check.add("evaluation")
            self._decide(args, state, control)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The last step's rows are all there: refuses monitored metrics that were not among them."""
        for kind in self._to_check - self._checked:
            names = [m for m in self._session.monitors if m.startswith("eval_") == (kind == "evaluation")]
            self._session.require(names, self._known, f"the Trainer's first {kind} row has")
            self._checked.add(kind)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Of a run that stays stopped: an optimizer skips parameters without a gradient."""
        if self._held is not None:
            kwargs["model"].zero_grad(set_to_none=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Of a run that stays stopped: nothing to log, evaluate or save."""
        if self._held is not None:
            control.should_log = control.should_evaluate = control.should_save = False

    on_epoch_end = on_step_end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What is evaluated from now on is none of training's."""
        if self._held is not None:
            state.global_step, state.epoch, state.num_input_tokens_seen = self._held
        elif self.stop is not None:
            self._say(state, "early stopping")
        self._listening = False

    # ---- inside ----

    def _deaf_at(self, state: TrainerState) -> bool:
        # At the step of the checkpoint all has been told already; `eval_on_start` would tell it twice.
        return not self._listening or self._held is not None or state.global_step == self._resumed_at

    def _decide(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        own = Observation(
            step=state.global_step,
            metrics=self._pending,
            epoch=state.epoch or 0.0,
            tokens=state.num_input_tokens_seen,
            seconds=self._session.seconds,
            total_steps=max(state.max_steps, 0),
        )
        self._pending = {}
        seen = rank_zeros(own)
        self._known |= set(seen.metrics)
        stops = self._session.observe(seen).stop
        if stops and not control.should_training_stop:
            self._stop_is_ours = True
        elif not stops and self._stop_is_ours:  # a second evaluation at this step changed the verdict
            control.should_training_stop = self._stop_is_ours = False
        if stops:
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy in ("steps", "epoch")
        self._note_stop(state)

    def _note_stop(self, state: TrainerState) -> None:
        """Keeps the row on the stop in the log as the latest decision on the step wants it."""
        if self._row is not None:
            state.log_history.remove(self._row)
        self._row = None
        if self.stop is not None:
            said: dict[str, Any] = {key: value for key, value in self.stop.items() if key != "step"}
            self._row = {"step": self.stop["step"], "epoch": state.epoch, "early_stopping": said}
            state.log_history.append(self._row)

    def _say(self, state: TrainerState, what: str) -> None:
        if self.stop is not None and state.is_world_process_zero:
            _log.warning("%s at step %d (%s): %s", what, self.stop["step"], self.stop["reason"], self.stop["message"])

    def _check_arguments(self, args: TrainingArguments) -> None:
        """Refuses, or warns of, arguments that keep a monitored metric from us."""
        if not (self.stopper.config.enabled or self.stopper.config.shadow_rules):
            return
        evaluated = [name for name in self._session.monitors if name.startswith("eval_")]
        logged = [name for name in self._session.monitors if not name.startswith("eval_")]
        if evaluated and args.eval_strategy == "no":
            raise SettingsError(
                f"early_stopping.monitor: {evaluated[0]!r} comes of evaluations, and there are none: "
                'set TrainingArguments(eval_strategy="steps", eval_steps=...)'
            )
        if logged and args.logging_strategy == "no":
            raise SettingsError(
                f"early_stopping.monitor: {logged[0]!r} comes of the training log, and there is none: "
                'set TrainingArguments(logging_strategy="steps", logging_steps=...)'
            )
        if self._session.counts_tokens() and args.include_num_input_tokens_seen == "no":
            raise SettingsError(
                "early_stopping.rule: counts tokens, and the Trainer does not: "
                'set TrainingArguments(include_num_input_tokens_seen="non_padding")'
            )
        if "loss" in logged and args.logging_nan_inf_filter:
            warnings.warn(
                "the Trainer replaces a NaN or infinite training loss by earlier ones before it is seen here: "
                "set TrainingArguments(logging_nan_inf_filter=False)",
                stacklevel=3,
            )
        if args.restore_callback_states_from_checkpoint:
            warnings.warn(
                "restore_callback_states_from_checkpoint=True makes the Trainer build its callbacks anew with the "
                f"checkpoint's settings on resume; {type(self).__name__} restores itself and needs it False",
                stacklevel=3,
            )


def rank_zeros(own: Observation) -> Observation:
    """Rank 0's observation, on every rank. Collective; called where all ranks log or evaluate."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return own
    box: list[Any] = [own]
    dist.broadcast_object_list(box, src=0)
    return box[0]
