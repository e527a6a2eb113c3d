"""Table and figures of noise.py."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import stats

Rows = Sequence[Mapping[str, Any]]
COLOURS = ("#1f6feb", "#d4572a", "#2a9d5c", "#8a4fbf", "#b58900", "#c0397b", "#5b6670", "#17a2b8", "#7f4f24", "#333333")


def last(row: Mapping[str, Any], name: str) -> float:
    """The held-out loss after the last step."""
    return float(row["curve"][max(row["curve"], key=int)][name])


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % t interval (NaN with one value, and without any)."""
    mean = float(np.mean(values)) if values else math.nan
    if len(values) < 2:
        return mean, math.nan, math.nan
    if np.ptp(values) == 0:
        return mean, mean, mean
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return mean, float(low), float(high)


def paired(rows: Rows, method: str, base: str, name: str = "loss") -> tuple[float, float, float]:
    """Mean over seeds of loss / loss of `base` - 1 in the same seed, and its interval."""
    of = {key: {row["seed"]: last(row, name) for row in rows if row["method"] == key} for key in (method, base)}
    return over_seeds([of[method][seed] / of[base][seed] - 1 for seed in sorted(of[method].keys() & of[base].keys())])


def write_results(rows: Rows, names: Mapping[str, str], folder: Path) -> str:
    """Write noise.md and noise.html into `folder`; the table."""
    methods = [method for method in names if any(row["method"] == method for row in rows)]
    text = table(rows, methods, names)
    (folder / "noise.md").write_text(text)
    if "baseline" in methods:
        figure(rows, methods, names).write_html(folder / "noise.html", include_plotlyjs=True)
    return text


def percent(value: tuple[float, float, float]) -> str:
    mean, low, high = (100 * number for number in value)
    if math.isnan(mean):
        return "-"
    return f"{mean:+.1f} %" if math.isnan(low) else f"{mean:+.1f} % [{low:+.1f}, {high:+.1f}]"


def table(rows: Rows, methods: Sequence[str], names: Mapping[str, str]) -> str:
    lines = [
        "| method | steps | held-out loss | against baseline | head 1 alone | AUROC (first, last tenth) | "
        "weight of corrupted | against the baseline with its compute: scoring, all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        mean = {key: np.mean([row[key] for row in own]) for key in ("auroc", "auroc_first", "auroc_last")}
        loss, weight = np.mean([last(row, "loss") for row in own]), np.mean([row["weight_of_corrupted"] for row in own])
        steps = "-".join(str(n) for n in sorted({min(r["steps"] for r in own), max(r["steps"] for r in own)}))
        relative = [percent(paired(rows, method, "baseline", name)) for name in ("loss", "loss_h1")]
        compute = ", ".join(percent(paired(rows, method, f"baseline_{part}")) for part in ("scored", "all"))
        told = f"{mean['auroc']:.3f} ({mean['auroc_first']:.3f}, {mean['auroc_last']:.3f})"
        lines.append(
            f"| {names[method]} | {steps} | {loss:.4f} | {relative[0]} | {relative[1]} | {told} | {weight:.2f} | "
            f"{'' if method.startswith('baseline') or method == 'oracle' else compute} |"
        )
    seeds = sorted({row["seed"] for row in rows})
    reference = [last(row, "loss") for row in rows if row["method"] == "reference" and row["curve"]]
    lines += ["", f"Seeds {', '.join(map(str, seeds))}; settings `{json.dumps(rows[0]['settings'])}`."]
    if reference:
        lines.append(f"Reference: {np.mean(reference):.4f} nats per next token on the held-out data.")
    lines.append("Changes are means over seeds of loss / baseline's loss - 1, with 95 % t intervals, paired by seed.")
    return "\n".join(lines) + "\n"


def figure(rows: Rows, methods: Sequence[str], names: Mapping[str, str]) -> go.Figure:
    titles = (
        "Clean held-out loss against the baseline, % (filled: mean of the heads; open: head 1)",
        "AUROC of low weight against corruption",
        "Held-out loss",
    )
    page = make_subplots(rows=3, cols=1, subplot_titles=titles, row_heights=[0.4, 0.3, 0.3], vertical_spacing=0.08)
    colour = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    for method in reversed([m for m in methods if m != "baseline"]):
        for name, symbol in (("loss", "circle"), ("loss_h1", "circle-open")):
            mean, low, high = (100 * value for value in paired(rows, method, "baseline", name))
            bars = {} if math.isnan(low) else {"array": [high - mean], "arrayminus": [mean - low]}
            page.add_scatter(x=[mean], y=[names[method]], error_x=bars, mode="markers", showlegend=False, row=1, col=1,
                             marker={"color": colour[method], "size": 10, "symbol": symbol})  # fmt: skip
    page.add_vline(x=0, line_dash="dot", row=1, col=1)
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        line = {"name": names[method], "legendgroup": method, "line": {"color": colour[method]}, "mode": "lines"}
        if not method.startswith("baseline"):
            n = min(len(row["auroc_curve"]) for row in own)
            share = (np.arange(n) + 0.5) / n
            page.add_scatter(x=share * own[0]["steps"], y=np.mean([row["auroc_curve"][:n] for row in own], axis=0),
                             row=2, col=1, showlegend=False, **line)  # fmt: skip
        steps = sorted(own[0]["curve"], key=int)[1:]
        losses = [[row["curve"][step]["loss"] for step in steps] for row in own if set(steps) <= row["curve"].keys()]
        page.add_scatter(x=[int(s) for s in steps], y=np.mean(losses, axis=0), row=3, col=1, **line)
    page.update_xaxes(title_text="step", row=3, col=1)
    page.update_yaxes(title_text="nats per token, mean of four heads", row=3, col=1)
    return page.update_layout(
        height=1150, width=900, template="plotly_white", legend={"orientation": "h", "y": -0.07}, margin={"t": 60}
    )
