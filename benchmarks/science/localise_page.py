"""Tables and figures of localise.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from noise_page import over_seeds
from plotly.subplots import make_subplots

Row = Mapping[str, Any]
Rows = Sequence[Row]
CHANCES = ("chance1", "chance3", "chance_near")
WITHOUT_VALUES = ("looks", "surprise", "surprise_text")
MODES = {"td": "#1f6feb", "diff": "#d4572a"}


def of_method(rows: Rows, method: str, of: Callable[[Row], float]) -> tuple[float, float, float]:
    """Mean over a method's seeds, and its interval."""
    return over_seeds([of(row) for row in rows if row["method"] == method])


def told(value: tuple[float, float, float]) -> str:
    mean, low, high = value
    return f"{mean:.3f}" if math.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def write_results(rows: Rows, names: Mapping[str, str], folder: Path) -> str:
    """Write localise.md and localise.html into `folder`; the tables."""
    methods = [method for method in names if any(row["method"] == method for row in rows)]
    text = "\n".join([*table(rows, methods, names), "", *kinds_table(rows, methods, names), ""])
    (folder / "localise.md").write_text(text)
    figure(rows, methods, names).write_html(folder / "localise.html", include_plotlyjs=True)
    return text


def table(rows: Rows, methods: Sequence[str], names: Mapping[str, str]) -> list[str]:
    lines = [
        "| scores | top 1, `td` | top 1, `diff` | top 1, `td`, without kind `returned` | "
        "top 3, `td` | top 3, `diff` | top 1 or the next 2 tokens, `td` | "
        "AUROC pass/fail | held-out explained variance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method in methods:
        cells = [
            told(of_method(rows, method, lambda row, mode=mode, name=name: row[mode][name]))
            for mode, name in (("td", "top1"), ("diff", "top1"), ("td", "top3"), ("diff", "top3"), ("td", "near"))
        ]
        if method in WITHOUT_VALUES:
            cells[1] = cells[3] = ""
        cells.insert(2, told(of_method(rows, method, lambda row: others(row, 0))))
        explains = method not in WITHOUT_VALUES
        explained = told(of_method(rows, method, lambda row: row["explained"])) if explains else ""
        outcome = told(of_method(rows, method, lambda row: row["auroc"]))
        lines.append(f"| {names[method]} | {' | '.join(cells)} | {outcome} | {explained} |")
    one, three, near = (f"{of_method(rows, methods[0], lambda row, n=n: row['td'][n])[0]:.3f}" for n in CHANCES)
    rest = f"{of_method(rows, methods[0], lambda row: others(row, 1))[0]:.3f}"
    lines.append(f"| chance, exactly | {one} | {one} | {rest} | {three} | {three} | {near} | 0.500 | 0 |")
    sizes = [round(np.mean([row[side] for row in rows])) for side in ("train", "held_out")]
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    told_settings = {key: Path(x).name if key == "model" else x for key, x in rows[0]["settings"].items()}
    lines += ["", f"Seeds {seeds}; {sizes[0]} programs to learn from, {sizes[1]} held out."]
    lines.append(f"Settings: `{json.dumps(told_settings)}`.")
    if "surprise" in methods:
        lowest = told(of_method(rows, "surprise", lambda row: row["auroc_lowest"]))
        lines.append(f"Surprise tells pass from fail by the mean log-likelihood; by the lowest one: {lowest}.")
    return [*lines, "Means over seeds with 95 % t intervals."]


def others(row: Row, which: int) -> float:
    """Top 1 with `td` (0) or chance (1) over all kinds of mistakes but `returned`."""
    kinds = [values for kind, values in row["td"]["kinds"].items() if kind != "returned"]
    return float(np.average([values[which] for values in kinds], weights=[values[2] for values in kinds]))


def by_kind(rows: Rows, method: str) -> dict[str, tuple[float, float, float]]:
    """Kind of mistake -> top 1 with `td`, chance, and programs a seed, over all seeds' programs alike."""
    own = [row["td"]["kinds"] for row in rows if row["method"] == method]
    found: dict[str, tuple[float, float, float]] = {}
    for kind in sorted(set().union(*own)):
        parts = np.array([kinds[kind] for kinds in own if kind in kinds])
        number = parts[:, 2].sum()
        found[kind] = (*(parts[:, :2] * parts[:, 2:]).sum(axis=0) / number, number / len(own))
    return found


def kinds_table(rows: Rows, methods: Sequence[str], names: Mapping[str, str]) -> list[str]:
    shown = {method: by_kind(rows, method) for method in methods}
    lines = [
        f"| top 1 by kind of mistake (`td`) | held out, a seed | chance | {' | '.join(names[m] for m in methods)} |",
        f"|---|---|---|{'---|' * len(methods)}",
    ]
    for kind, (_, chance, number) in shown[methods[0]].items():
        cells = " | ".join(f"{shown[method][kind][0]:.2f}" for method in methods)
        lines.append(f"| {kind} | {number:.0f} | {chance:.2f} | {cells} |")
    return lines


def figure(rows: Rows, methods: Sequence[str], names: Mapping[str, str]) -> go.Figure:
    titles = (
        "Wrong programs whose lowest score is a mutated token (line: chance)",
        "AUROC of pass/fail at the end of the program",
        "Lowest score is a mutated token, by kind of mistake (delta_mode td)",
    )
    page = make_subplots(rows=3, cols=1, subplot_titles=titles, row_heights=[0.35, 0.25, 0.4], vertical_spacing=0.1)

    def dots(row: int, label: str, colour: str, of: Callable[[Row], float], shown: Sequence[str], *, key: bool) -> None:
        values = [of_method(rows, method, of) for method in shown]
        symbol = "circle" if label != "delta_mode diff" else "circle-open"
        up, down = ([abs(value[i] - value[0]) for value in values] for i in (2, 1))
        bars = {"array": up, "arrayminus": down}
        marker = {"color": colour, "size": 10, "symbol": symbol}
        page.add_scatter(x=[mean for mean, _, _ in values], y=[names[method] for method in shown], error_x=bars,
                         mode="markers", marker=marker, name=label, showlegend=key, row=row, col=1)  # fmt: skip

    backwards = list(reversed(methods))
    for mode, colour in MODES.items():
        shown = [method for method in backwards if mode == "td" or method not in WITHOUT_VALUES]
        dots(1, f"delta_mode {mode}", colour, lambda row, mode=mode: row[mode]["top1"], shown, key=True)
    dots(2, "AUROC", "#2a9d5c", lambda row: row["auroc"], backwards, key=False)
    page.add_vline(x=of_method(rows, methods[0], lambda row: row["td"]["chance1"])[0], line_dash="dot", row=1, col=1)
    page.add_vline(x=0.5, line_dash="dot", row=2, col=1)
    compared = [method for method in ("gae", "balanced", "looks", "surprise", "surprise_text") if method in methods]
    for method, colour in zip(compared, ("#1f6feb", "#2a9d5c", "#b58900", "#5b6670", "#333333"), strict=False):
        kinds = by_kind(rows, method)
        page.add_bar(x=list(kinds), y=[value[0] for value in kinds.values()], name=names[method], row=3, col=1,
                     marker={"color": colour})  # fmt: skip
    page.update_xaxes(range=[0, 1], row=1, col=1).update_xaxes(range=[0, 1], row=2, col=1)
    page.update_yaxes(range=[0, 1], row=3, col=1)
    legend = {"orientation": "h", "y": -0.06}
    return page.update_layout(height=1300, width=1050, template="plotly_white", legend=legend)
