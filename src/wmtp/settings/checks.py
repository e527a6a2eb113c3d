"""What no field can tell by itself: settings that contradict each other, in one file or across both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from wmtp.settings.config import Config, DatasetSplits
from wmtp.settings.document import KeyPath, show_text
from wmtp.settings.explain import nearest
from wmtp.settings.recipe import DataPart, Recipe
from wmtp.stopping.config import EarlyStoppingConfig

Item = TypeVar("Item")


@dataclass(frozen=True)
class Finding:
    """A contradiction.

    Attributes:
        path: key path of the setting that is reported, in the recipe unless a config alone is checked.
        text: what is wrong, and the cure.
        also: other key paths that the check looked at.
        config: key path that it looked at in the config, None if none.
    """

    path: KeyPath
    text: str
    also: tuple[KeyPath, ...] = ()
    config: KeyPath | None = None


_ALGO: KeyPath = ("train", "algo")
_HORIZON: KeyPath = ("model", "horizon")
_STAGE1_METRICS = (
    *("loss", "value_loss", "grad_norm", "value_variance", "explained_variance", "variance_ratio"),
    *("eval_value_loss", "eval_value_variance", "eval_explained_variance", "eval_variance_ratio"),
)
_STAGE2_METRICS = ("loss", "wmtp_loss", "grad_norm", "lr", "eval_loss")


def check_recipe(recipe: Recipe) -> Iterator[Finding]:
    """Contradictions within the recipe."""
    yield from _check_run(recipe)
    yield from _check_algorithm(recipe)
    yield from _check_heads(recipe)
    yield from _check_data(recipe)
    yield from _check_stopping(recipe)
    yield from _check_metrics(recipe)


def check_config(config: Config) -> Iterator[Finding]:
    """Contradictions within the config."""
    for source in type(config.paths.datasets).model_fields:
        splits = getattr(config.paths.datasets, source)
        if isinstance(splits, DatasetSplits) and not any((splits.train, splits.validation, splits.test)):
            here: KeyPath = ("paths", "datasets", source)
            also = tuple((*here, split) for split in DatasetSplits.model_fields)
            yield Finding(here, "needs at least one of train, validation, test", also)
    yield from _check_processes(config)


def _check_processes(config: Config) -> Iterator[Finding]:
    devices, size, processes = config.devices, ("devices", "fsdp", "shard_size"), ("devices", "num_proc")
    group = devices.fsdp.shard_size
    if group is not None and devices.fsdp.sharding != "hybrid":
        yield Finding(
            size, "counts with sharding: hybrid alone; set that, or remove it", (("devices", "fsdp", "sharding"),)
        )
    elif group is not None and devices.num_proc > 1 and devices.num_proc % group:
        yield Finding(size, f"the {devices.num_proc} processes can't be divided into groups of {group}", (processes,))
    if devices.mixed_precision == "fp16" and devices.num_proc > 1:
        text = "not with several processes, for each would have a loss scale of its own; set bf16"
        yield Finding(("devices", "mixed_precision"), text, (processes,))


def check_both(recipe: Recipe, config: Config) -> Iterator[Finding]:
    """What the recipe uses and the config doesn't have."""
    for path, source in _used_sources(recipe):
        if getattr(config.paths.datasets, source) is None and not _only_for_evaluation(path, source):
            yield Finding(
                path,
                f"`paths.datasets.{source}` is not set in the config; set it to where the data lies",
                config=("paths", "datasets", source),
            )
    if recipe.train.algo == "rho1-wmtp" and config.paths.models.ref is None:
        yield Finding(
            _ALGO,
            "needs a reference model with the same tokenizer; set `paths.models.ref` in the config",
            config=("paths", "models", "ref"),
        )
    critic, pretrain = recipe.critic, recipe.pretrain
    if recipe.train.algo == "critic-wmtp" and critic and pretrain and pretrain.enabled:
        wants_model = critic.target == "rm_sequence" and not critic.use_pseudo_rewards
        if wants_model and config.paths.models.rm is None:
            yield Finding(
                ("critic", "use_pseudo_rewards"),
                "there is no reward model; set `paths.models.rm` in the config, or write true here",
                (_ALGO, ("critic", "target"), ("pretrain", "enabled")),
                ("paths", "models", "rm"),
            )


def _check_run(recipe: Recipe) -> Iterator[Finding]:
    if recipe.run.name in (".", ".."):
        yield Finding(("run", "name"), "can't name a folder; use letters or digits too")


def _check_algorithm(recipe: Recipe) -> Iterator[Finding]:
    algo = recipe.train.algo
    for name, section in (("critic", recipe.critic), ("rho1", recipe.rho1)):
        if algo == f"{name}-wmtp" and section is None:
            yield Finding(_ALGO, f"needs the section `{name}`; write `{name}: {{}}` to take its defaults", ((name,),))
    if recipe.pretrain and recipe.pretrain.enabled and algo != "critic-wmtp":
        yield Finding(
            ("pretrain", "enabled"),
            f"critic-wmtp alone pretrains, `train.algo` is {algo}; write false here or remove `pretrain`",
            (_ALGO,),
        )


def _check_heads(recipe: Recipe) -> Iterator[Finding]:
    model = recipe.model
    if model.horizon == 1:
        for key, value in (
            ("model.detach_heads", model.detach_heads),
            ("model.head_warmup_steps", model.head_warmup_steps),
            ("optim.heads_lr", recipe.optim.heads_lr),
        ):
            if value:
                yield Finding(
                    tuple(key.split(".")),
                    "`model.horizon: 1` has no extra heads; remove this or raise the horizon",
                    (_HORIZON,),
                )
        if not recipe.train.full_finetune:
            yield Finding(
                ("train", "full_finetune"),
                "`model.horizon: 1` has no extra heads, nothing would learn; write true or raise the horizon",
                (_HORIZON,),
            )
    if model.head_coefficients is not None:
        fault = _coefficients_fault(model.head_coefficients, model.horizon)
        if fault:
            yield Finding(("model", "head_coefficients"), fault, (_HORIZON,))


def _coefficients_fault(coefficients: tuple[float, ...], horizon: int) -> str:
    if len(coefficients) != horizon:
        return f"has {len(coefficients)} values, `model.horizon` is {horizon}; give one per head"
    mean = sum(coefficients) / horizon
    if mean == 0:
        return "at least one must be above 0"
    if abs(mean - 1) <= 1e-6:
        return ""
    return f"the mean must be 1, not {mean:.6g}; write {[round(c / mean, 9) for c in coefficients]}"


def _check_data(recipe: Recipe) -> Iterator[Finding]:
    for part, settings in _parts(recipe):
        here: KeyPath = ("data", part)
        for i, source in _repeated(settings.sources):
            yield Finding((*here, "sources", i), f"{source} is named twice; keep one")
        if settings.max_length <= recipe.model.horizon:
            yield Finding(
                (*here, "max_length"),
                f"must be above `model.horizon`, {recipe.model.horizon}, or the last head has no target",
                (_HORIZON,),
            )
    for path, source in _used_sources(recipe):
        if _only_for_evaluation(path, source):
            yield Finding(path, f"{source} is for evaluation only; train on another source")


def _check_stopping(recipe: Recipe) -> Iterator[Finding]:
    if recipe.pretrain and recipe.pretrain.enabled:
        stopping = recipe.pretrain.early_stopping
        yield from _check_monitor("pretrain", stopping, _STAGE1_METRICS, "eval_value_loss")
    yield from _check_monitor(
        "train", recipe.train.early_stopping, _STAGE2_METRICS, "eval_loss", heads=recipe.model.horizon
    )


def _check_monitor(
    stage: str, stopping: EarlyStoppingConfig, metrics: tuple[str, ...], held_out: str, heads: int = 0
) -> Iterator[Finding]:
    monitor, here = stopping.monitor, (stage, "early_stopping")
    rule, shadows = stopping.tree({})[0], stopping.shadow_trees({})[0].values()
    watched = [("monitor", monitor)] if stopping.enabled else []
    watched += [("rule", name) for name in rule.monitors if name != monitor] if stopping.enabled and rule else []
    watched += [("shadow_rules", name) for shadow in shadows for name in shadow.monitors]
    for key, name in watched:
        of_head = re.fullmatch(r"(?:eval_)?loss_h([1-9]\d{0,8})", name)
        if name in metrics or (of_head and int(of_head[1]) <= heads):
            continue
        own = [f"{of}_h{k}" for of in ("loss", "eval_loss") for k in range(1, min(heads, 64) + 1)]
        near = nearest(name, [*metrics, *own])
        cure = f"did you mean {near}? " if near else ""
        per_head = f", and per head loss_h1.. and eval_loss_h1.., up to {heads}" if heads else ""
        what = "such metric" if key == "monitor" else f"metric {show_text(name)}"
        yield Finding(
            (*here, key),
            f"this stage has no {what}; {cure}There are {', '.join(metrics)}{per_head}",
            (_HORIZON, (*here, "enabled"), (stage, "enabled")),
        )
    if not stopping.enabled:
        return
    if stopping.restore_best and not monitor.startswith("eval_"):
        yield Finding(
            (*here, "restore_best"),
            f"the best step is known only for a metric measured at evaluations, not for {show_text(monitor)}; "
            f"write `monitor: {held_out}` beside it, or false here",
            ((*here, "monitor"),),
        )


def _check_metrics(recipe: Recipe) -> Iterator[Finding]:
    n = recipe.eval.sampling.n
    for i, metric in _repeated(recipe.eval.metrics):
        yield Finding(("eval", "metrics", i), f"{metric} is named twice; keep one")
    for i, metric in enumerate(recipe.eval.metrics):
        if (match := re.search(r"pass@(\d+)$", metric)) and int(match[1]) > n:
            yield Finding(
                ("eval", "metrics", i),
                f"needs at least {match[1]} programs per problem; raise `eval.sampling.n`, which is {n}",
                (("eval", "sampling", "n"),),
            )
        yield from _check_protocol(recipe.eval.protocol, metric, i)
    if n > 1 and 0 in (recipe.eval.sampling.temperature, *recipe.eval.sampling.temperature_grid):
        yield Finding(
            ("eval", "sampling", "n"),
            "greedy decoding (temperature 0) gives the same program each time; set n: 1, or a temperature above 0",
            (("eval", "sampling", "temperature"), ("eval", "sampling", "temperature_grid")),
        )
    if recipe.eval.speculative and recipe.model.horizon == 1:
        yield Finding(("eval", "speculative"), "needs heads that draft: model.horizon 2 or more, it is 1", (_HORIZON,))


def _check_protocol(protocol: str, metric: str, i: int) -> Iterator[Finding]:
    wanted, source = protocol.partition("/")[0], metric.partition("_")[0]
    if wanted not in ("meta-mtp", source):
        yield Finding(
            ("eval", "metrics", i),
            f"protocol {protocol} puts {wanted} problems alone; set eval.protocol: meta-mtp, or leave this one out",
            (("eval", "protocol"),),
        )


def _parts(recipe: Recipe) -> list[tuple[str, DataPart]]:
    """The parts of `data` that the recipe has; `eval` left out is a copy of `train`."""
    given = recipe.data.model_fields_set
    return [(name, part) for name, part in (("train", recipe.data.train), ("eval", recipe.data.eval)) if name in given]


def _used_sources(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    for part, settings in _parts(recipe):
        for i, source in enumerate(settings.sources):
            yield ("data", part, "sources", i), source
    for i, metric in enumerate(recipe.eval.metrics):
        yield ("eval", "metrics", i), metric.partition("_")[0]


def _only_for_evaluation(path: KeyPath, source: str) -> bool:
    return path[:2] == ("data", "train") and source == "humaneval"


def _repeated(items: tuple[Item, ...]) -> Iterator[tuple[int, Item]]:
    """The items that stand further ahead already."""
    return ((i, item) for i, item in enumerate(items) if item in items[:i])
