"""Do divergence rules find real divergences? Small real models whose training is broken on purpose at a known step.

    python benchmarks/stopping/injected.py --output FOLDER [--jobs 2] [--steps 1200]

A byte-level language model of one layer on the source of Python's standard library, plain AdamW, no clipping. 12
healthy runs (three learning rates, two batch sizes, two seeds), the same 12 with the learning rate times 30 or 100 from
a random step on, and four with one or two batches of random bytes, from which they recover. Each run's loss and
gradient norm per step stay in FOLDER/runs; FOLDER/injected.md is the table, injected.html shows the runs.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from detectors import detect
from judging import markdown
from plotly.subplots import make_subplots
from torch import Tensor, nn

from wmtp.stopping import LossEarlyStopping
from wmtp.types import Observation

WIDTH, CONTEXT = 64, 64
NEVER_CONVERGED = {"patience": 10**9, "mode": "any", "variance_min": None}
NORMS = {"grad_norm_window_size": 10, "grad_norm_threshold_ratio": 0.7}
RULES: dict[str, dict[str, Any]] = {
    "wmtp divergence of the loss": {"rule": "divergence"},
    "wmtp divergence of the gradient norm": {"rule": {"divergence": {"monitor": "grad_norm"}}},
    "wmtp any of both": {"rule": {"any": ["divergence", {"divergence": {"monitor": "grad_norm"}}]}},
    "gradient norm > 50 in 7 of 10 (published recipe)": {**NEVER_CONVERGED, **NORMS, "grad_norm_threshold": 50.0},
    "gradient norm > 5 in 7 of 10": {**NEVER_CONVERGED, **NORMS, "grad_norm_threshold": 5.0},
}


@dataclass(frozen=True)
class Run:
    """kind: healthy, diverge (from `event` on the learning rate is `factor` times its own) or spike (from `event`
    on `factor` batches are random)."""

    kind: str
    lr: float
    batch_size: int
    seed: int
    steps: int
    event: int = 0
    factor: int = 1

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.lr:g}-{self.batch_size}-{self.seed}-{self.steps}"


def runs(steps: int) -> list[Run]:
    rng = np.random.default_rng(5)
    grid = [(lr, size, seed) for lr in (1e-3, 2e-3, 4e-3) for size in (4, 16) for seed in (0, 1)]
    found = [Run("healthy", *each, steps) for each in grid]
    for i, each in enumerate(grid):
        event = int(rng.integers(steps // 4, 3 * steps // 4))
        found.append(Run("diverge", *each, steps, event, (30, 100)[i // 2 % 2 ^ i % 2]))
    for i in range(4):
        event = int(rng.integers(steps // 4, 3 * steps // 4))
        found.append(Run("spike", (1e-3, 3e-3)[i % 2], 8, i, steps, event, 1 + i // 2))
    return found


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.layer(hidden, src_mask=mask, is_causal=True))


def source(least: int = 2_000_000) -> Tensor:
    """Bytes of the standard library's modules, in the order of their names."""
    text = bytearray()
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += file.read_bytes()
        if len(text) >= least:
            break
    return torch.frombuffer(text, dtype=torch.uint8)


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Loss and gradient norm of each step; kept in `folder`."""
    file = folder / f"{run.name}.json"
    if file.exists():
        found = json.loads(file.read_text())
        if found["run"] == asdict(run):
            return found
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    data, model, draws = source(), Model(), torch.Generator().manual_seed(run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr)
    losses: list[float] = []
    norms: list[float] = []
    for step in range(run.steps):
        if run.kind == "diverge" and step == run.event:
            for group in optimizer.param_groups:
                group["lr"] = run.factor * run.lr
        at = torch.randint(len(data) - CONTEXT - 1, (run.batch_size, 1), generator=draws)
        batch = data[at + torch.arange(CONTEXT + 1)].long()
        if run.kind == "spike" and run.event <= step < run.event + run.factor:
            batch = torch.randint(256, batch.shape, generator=draws)
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), torch.inf).item())
        losses.append(loss.item())
        optimizer.step()
    found = {"run": asdict(run), "loss": losses, "grad_norm": norms}
    file.write_text(json.dumps(found))
    return found


def stops_of(found: dict[str, Any]) -> dict[str, int]:
    """Where each rule stops, the number of steps for never."""
    stops: dict[str, int] = {}
    for name, settings in RULES.items():
        stopper = LossEarlyStopping({"enabled": True, "monitor": "loss", **settings})
        stops[name] = len(found["loss"])
        for step, (loss, norm) in enumerate(zip(found["loss"], found["grad_norm"], strict=True)):
            metrics = {stopper.config.monitor: loss, "grad_norm": norm}
            if stopper.observe(Observation(step + 1, metrics, total_steps=len(found["loss"]))).stop:
                stops[name] = step
                break
    return stops | {name: int(at[0]) for name, at in detect(np.array([found["loss"]])).items()}


def broke(found: dict[str, Any]) -> bool:
    """Whether the learning rate did harm: the 50 steps from the 50th after the event on lie 5 % above the 50 before."""
    if found["run"]["kind"] != "diverge":
        return False
    losses, event = np.array(found["loss"]), found["run"]["event"]
    return bool(not losses[event + 50 : event + 100].mean() < 1.05 * losses[event - 50 : event].mean())


def table(found: list[dict[str, Any]], stops: list[dict[str, int]]) -> str:
    """Found: a stop at or after the event; a stop before it, or on a healthy or recovering run, is a false alarm. Runs
    that took the learning rate without harm (`broke`) are apart."""
    lines: list[list[object]] = []
    for rule in stops[0]:
        at = [(one["run"], stop[rule]) for one, stop in zip(found, stops, strict=True)]
        of = {kind: [(run, stop) for run, stop in at if run["kind"] == kind] for kind in ("healthy", "spike")}
        hit = [(one["run"], stop[rule], broke(one)) for one, stop in zip(found, stops, strict=True)]
        of["diverge"] = [(run, stop) for run, stop, lost in hit if run["kind"] == "diverge" and lost]
        unharmed = [stop < run["steps"] for run, stop, lost in hit if run["kind"] == "diverge" and not lost]
        delays = [stop - run["event"] for run, stop in of["diverge"] if run["event"] <= stop < run["steps"]]
        early = sum(stop < run["event"] for run, stop in of["diverge"])
        false = [sum(stop < run["steps"] for run, stop in of[kind]) for kind in ("healthy", "spike")]
        delay = f"{np.median(delays):.0f} / {max(delays)}" if delays else "-"
        lines.append([rule, f"{len(delays)} of {len(of['diverge'])}", delay, early,
                      f"{false[0]} of {len(of['healthy'])}", f"{false[1]} of {len(of['spike'])}",
                      f"{sum(unharmed)} of {len(unharmed)}"])  # fmt: skip
    header = ["rule", "found", "delay (steps) median / largest", "before the event", "stops on healthy runs",
              "stops on recovering spikes", "stops on unharmed runs"]  # fmt: skip
    text = markdown(header, lines) + "\nWhat the breaking did: mean loss of the 50 steps before, of the last 50.\n\n"
    rows = [[one["run"]["kind"], one["run"]["lr"], one["run"]["batch_size"], one["run"]["factor"], one["run"]["event"],
             *(f"{np.mean(part):.2f}" for part in (one["loss"][one["run"]["event"] - 50 : one["run"]["event"]],
                                                   one["loss"][-50:]))]
            for one in found if one["run"]["kind"] != "healthy"]  # fmt: skip
    return text + markdown(
        ["kind", "learning rate", "batch", "factor, or random batches", "event", "before", "at the end"], rows
    )


def figure(found: list[dict[str, Any]], stops: list[dict[str, int]]) -> go.Figure:
    kinds = ("healthy", "diverge", "spike")
    titles = [f"{kind}: {what}" for kind in kinds for what in ("loss", "gradient norm")]
    page = make_subplots(rows=3, cols=2, shared_xaxes=True, vertical_spacing=0.05, subplot_titles=titles)
    rule = "wmtp divergence of the loss"
    for one, stop in zip(found, stops, strict=True):
        row = kinds.index(one["run"]["kind"]) + 1
        for col, field in enumerate(("loss", "grad_norm"), start=1):
            page.add_scatter(y=one[field], line={"width": 1}, opacity=0.6, showlegend=False, row=row, col=col)
            if stop[rule] < len(one[field]):
                page.add_scatter(x=[stop[rule]], y=[one[field][stop[rule]]], mode="markers", showlegend=False,
                                 marker={"color": "black", "size": 9, "symbol": "star"}, row=row, col=col)  # fmt: skip
    page.update_yaxes(type="log")
    return page.update_layout(height=950, width=1080, template="plotly_white", title=f"Real runs; stars: {rule} stops")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--steps", type=int, default=1200)
    args = parser.parse_args()
    folder = args.output / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        found = list(pool.map(partial(train, folder=folder), runs(args.steps)))
    stops = [stops_of(one) for one in found]
    text = table(found, stops)
    (args.output / "injected.md").write_text(text)
    figure(found, stops).write_html(args.output / "injected.html", include_plotlyjs=True)
    print(text)


if __name__ == "__main__":
    main()
