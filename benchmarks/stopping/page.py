"""Tables and figures of stopping.py; `python page.py FOLDER` writes them again from FOLDER/results.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from families import FAMILIES, HEALTHY
from judging import Row, markdown
from plotly.subplots import make_subplots

COLOURS = {
    "trend": "#6fa8ff", "trend + divergence": "#1f3fd0", "transformers": "#d4572a", "lightning": "#b58900",
    "ignite": "#c0397b", "xgboost": "#7f4f24", "optuna": "#8a4fbf", "ray: window std": "#e377c2",
    "published recipe": "#000000", "EMA + patience": "#2a9d5c", "window mean + patience": "#98a82b",
    "Prechelt GL": "#5b6670", "Prechelt PQ": "#9aa4ad", "Prechelt UP": "#17a2b8", "slope (least squares)": "#e00000",
}  # fmt: skip
SYMBOLS = ("star", "circle", "square", "diamond", "x")
LIMITS = (1.0, 2.0)
CADENCES = {"step": "per step (2,000 values)", "evaluation": "per evaluation (100 values)"}
REAL = {"real evaluation": "Real evaluation curves", "real step": "Real training-loss curves"}
UNITS = {"step": "steps", "evaluation": "evaluations"}


def write_results(results: Mapping[str, Any], folder: Path) -> str:
    """Write stopping.md and stopping.html into `folder`; the tables."""
    text = "\n".join([*(_cadence(results, name) for name in CADENCES), *_real(results), _agreement(results)])
    (folder / "stopping.md").write_text(text)
    figures = [front(results), front(results, real=True), delays(results), examples(results)]
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=i == 0) for i, figure in enumerate(figures) if figure.data
    ]
    body = "<!doctype html><meta charset=utf-8><title>Early stopping</title><body style='font-family:sans-serif'>"
    (folder / "stopping.html").write_text(body + "\n".join(parts))
    return text


def _ranked(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -row["saved"])


def _numbers(row: Row) -> list[str]:
    return [f"{row['saved']:.1f}", f"{row['false']:.1f}", f"{row['regret_mean']:.2f} / {row['regret_p95']:.2f}"]


def _lost(row: Row) -> str:
    delay = "-" if row["delay"] is None else f"{row['delay']:.0f} / {row['delay_p95']:.0f}"
    return f"{row['early']:.0f} / {row['found']:.0f} / {delay}"


def _cadence(results: Mapping[str, Any], name: str) -> str:
    rows = [row for row in results["rows"] if row["cadence"] == name and row["half"] == "odd"]
    oracle = next(row for row in rows if row["rule"] == "oracle")
    parts = [f"## {CADENCES[name]}\n",
             f"{oracle['runs']} healthy curves of odd seeds; an oracle saves {oracle['saved']:.1f} %.\n"]  # fmt: skip
    header = ["rule", "kind", "setting", "saved %", "false %", "regret % mean / p95",
              f"diverge: before / found % / delay ({UNITS[name]}) median / p95", "NaN for ever: the same"]  # fmt: skip
    for limit in LIMITS:
        chosen = _ranked([row for row in rows if limit in row.get("chosen", ())])
        none = sorted({row["rule"] for row in rows if row["rule"] != "oracle"} - {row["rule"] for row in chosen})
        parts.append(f"Settings chosen on even seeds: most saved with at most {limit:g} % false stops.\n")
        parts.append(markdown(header, [_line(row) for row in chosen]))
        parts.append(f"No setting with so few: {', '.join(none)}.\n" if none else "")
    defaults = _ranked([row for row in rows if row.get("default")])
    parts += [
        "At their defaults (or the documentation's example).\n",
        markdown(header, [_line(row) for row in defaults]),
    ]
    parts.append(_by_family([row for row in rows if row.get("default") or LIMITS[0] in row.get("chosen", ())]))
    parts.append(_detections(results, name))
    return "\n".join(parts)


def _line(row: Row) -> list[str]:
    return [row["rule"], row["group"], row["setting"], *_numbers(row), _lost(row["diverge"]), _lost(row["nan_forever"])]


def _by_family(rows: Sequence[Row]) -> str:
    shown = [[row["rule"], row["setting"],
              *(f"{row['families'][f]['saved']:.0f} / {row['families'][f]['false']:.1f}" for f in FAMILIES)]
             for row in _ranked(rows) if row["false"] <= 5]  # fmt: skip
    title = "By family, saved % / false % (lost runs: judged up to the event); rules with at most 5 % false.\n\n"
    return title + markdown(["rule", "setting", *FAMILIES], shown)


def _detections(results: Mapping[str, Any], name: str) -> str:
    rows = [row for row in results["detections"] if row["cadence"] == name]
    header = ["divergence rule", "diverge: before / found % / delay median / p95",
              *(f"alarms, {kind} %" for kind in HEALTHY), "NaN for ever"]  # fmt: skip
    lines = [
        [row["detector"], _lost(row["diverge"]), *(f"{row['alarms'][kind]:.1f}" for kind in HEALTHY),
         _lost(row["nan_forever"])]
        for row in rows
    ]  # fmt: skip
    return "Divergence rules alone, odd seeds.\n\n" + markdown(header, lines)


def _real(results: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    for cadence, title in REAL.items():
        rows = [row for row in results["rows"] if row["cadence"] == cadence]
        if not rows:
            continue
        oracle, kind = next(row for row in rows if row["rule"] == "oracle"), cadence.removeprefix("real ")
        counts = "; ".join(f"{what}: {n}" for what, n in results["counts"].items() if what.startswith(kind))
        everywhere = [row for row in rows if row["half"] == "all" and row["rule"] != "oracle"]
        none = sorted((row for row in everywhere if row["false"] == 0), key=lambda row: row["saved"])
        wrong = [one[1:] for one in results["wrong"] if one[0] == kind]
        parts += [
            f"## {title}\n\n{counts}. An oracle saves {oracle['saved']:.1f} %.\n",
            "Chosen on one half at <= 1 % false, judged on the other, both ways round.\n",
            _settings([row for row in rows if row.get("limit") == LIMITS[0]]),
            "At their defaults, all curves.\n",
            _settings([row for row in everywhere if row["default"]]),
            "Most saved without a false stop, all curves (chosen on what it is judged by: an upper bound).\n",
            _settings(list({row["rule"]: row for row in none}.values())),
            "False stops of wmtp's defaults.\n",
            markdown(["curve", "rule", "reason", "at value", "of", "regret %"], wrong),
        ]
    return parts


def _settings(rows: Sequence[Row]) -> str:
    header = ["rule", "kind", "setting", "saved %", "false %", "regret % mean / p95"]
    return markdown(header, [[row["rule"], row["group"], row["setting"], *_numbers(row)] for row in _ranked(rows)])


def _agreement(results: Mapping[str, Any]) -> str:
    lines = [[name, wrong, of] for name, (wrong, of) in results["mismatches"].items()]
    seeds = f"Seeds {min(results['seeds'])} to {max(results['seeds'])}; curves: {results['curves']}."
    title = f"## Adapters against real packages\n\n{seeds}\n\n"
    return title + markdown(["adapter", "mismatches", "curves"], lines)


def _frontier(rows: Sequence[Row]) -> list[Row]:
    """Settings than which none saves more with as few false stops."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["false"], -row["saved"])):
        if not kept or row["saved"] > kept[-1]["saved"]:
            kept.append(row)
    return kept


def front(results: Mapping[str, Any], *, real: bool = False) -> go.Figure:
    """Compute saved against false stops: the front over the sweep as a line, the default as a star."""
    names = dict(REAL if real else CADENCES)
    half = "all" if real else "odd"
    rows = [row for row in results["rows"] if row["cadence"] in names and row["half"] == half]
    if not rows:
        return go.Figure()
    page = make_subplots(rows=1, cols=2, subplot_titles=list(names.values()), horizontal_spacing=0.08)
    for rule, colour in COLOURS.items():
        for col, cadence in enumerate(names, start=1):
            own = [row for row in rows if row["rule"] == rule and row["cadence"] == cadence]
            line, default = _frontier(own), [row for row in own if row.get("default")]
            style = {"color": colour, "dash": "dot" if own and own[0]["group"] == "peer" else "solid"}
            page.add_scatter(
                x=[_shown(row["false"]) for row in line], y=[row["saved"] for row in line],
                text=[row["setting"] for row in line], name=rule, legendgroup=rule, showlegend=col == 1,
                mode="lines+markers", marker={"size": 5},
                line={**style, "width": 4 if own and own[0]["group"] == "wmtp" else 1.5},
                hovertemplate="%{text}<br>false %{x:.2f} %, saved %{y:.1f} %", row=1, col=col,
            )  # fmt: skip
            page.add_scatter(
                x=[_shown(row["false"]) for row in default], y=[row["saved"] for row in default], mode="markers",
                marker={"color": colour, "symbol": "star", "size": 13, "line": {"width": 1, "color": "black"}},
                row=1, col=col, text=[f"{rule}, default" for _ in default], showlegend=False, legendgroup=rule,
                hovertemplate="%{text}<br>false %{x:.2f} %, saved %{y:.1f} %",
            )  # fmt: skip
    page.add_vline(x=1, line_dash="dot")
    ticks = [0.1, 0.3, 1, 3, 10, 30, 100]
    page.update_xaxes(type="log", range=[-1.05, 2.05], tickvals=ticks, ticktext=["0", *map(str, ticks[1:])],
                      title_text="false stops, % (log; 0 at the left edge)")  # fmt: skip
    page.update_yaxes(title_text="compute saved, %", range=[-2, 100])
    what = "real curves, all of them" if real else "odd seeds"
    title = f"Saved against false stops, {what}; stars: defaults; thick: wmtp; dotted: peers"
    return page.update_layout(height=620, width=1080, template="plotly_white", legend={"orientation": "h", "y": -0.16},
                              title=title)  # fmt: skip


def _shown(false: float) -> float:
    return max(false, 0.1)


def delays(results: Mapping[str, Any]) -> go.Figure:
    """Divergence rules: found in time, and what they cost on runs that are healthy."""
    page = make_subplots(rows=2, cols=2, horizontal_spacing=0.06, shared_yaxes=True, vertical_spacing=0.14,
                         subplot_titles=[f"{what}, {title}" for title in CADENCES.values() for what in
                                         ("median delay", "false alarms")])  # fmt: skip
    for i, cadence in enumerate(CADENCES, start=1):
        rows = [row for row in results["detections"] if row["cadence"] == cadence][::-1]
        names = [f"{row['detector']}: {row['diverge']['found']:.0f} % found" for row in rows]
        delay = [row["diverge"]["delay"] for row in rows]
        page.add_bar(y=names, x=delay, orientation="h", marker_color="#1f6feb", showlegend=False, row=i, col=1)
        for name, colour, mean in (
            ("before the divergence", "#333333", lambda row: row["diverge"]["early"]),
            ("recovering spikes", "#d4572a", lambda row: row["alarms"]["spike"]),
            ("other healthy runs", "#b58900",
             lambda row: np.mean([row["alarms"][kind] for kind in HEALTHY if kind != "spike"])),
        ):  # fmt: skip
            page.add_bar(y=names, x=[mean(row) for row in rows], orientation="h", name=name, marker_color=colour,
                         showlegend=i == 1, row=i, col=2)  # fmt: skip
        page.update_xaxes(title_text=UNITS[cadence], row=i, col=1)
        page.update_xaxes(title_text="% of the runs", range=[0, 100], row=i, col=2)
    return page.update_layout(height=900, width=1080, template="plotly_white", title="Divergence rules, odd seeds",
                              legend={"orientation": "h", "y": -0.08}, margin={"l": 320})  # fmt: skip


def examples(results: Mapping[str, Any]) -> go.Figure:
    """A curve of each family with its truth, and where rules stop."""
    found = results["examples"]
    page = make_subplots(
        rows=len(FAMILIES), cols=2, vertical_spacing=0.03, horizontal_spacing=0.05,
        subplot_titles=[f"{family}, {UNITS[cadence]}" for family in FAMILIES for cadence in CADENCES],
    )  # fmt: skip
    seen: set[str] = set()
    for example in found:
        row, col = list(FAMILIES).index(example["family"]) + 1, list(CADENCES).index(example["cadence"]) + 1
        values, truth = np.array(example["values"]), np.array(example["truth"])
        page.add_scatter(y=values, line={"color": "#c8ccd0", "width": 1}, showlegend=False, row=row, col=col)
        page.add_scatter(y=truth, line={"color": "#333333", "width": 1.5}, showlegend=False, row=row, col=col)
        for symbol, (label, stop) in zip(SYMBOLS, example["stops"].items(), strict=False):
            rule = label if "default" in label else label.rsplit(" (", 1)[0]
            style = {"size": 12, "color": COLOURS[label.rsplit(" (", 1)[0]], "symbol": symbol}
            if rule not in seen:
                page.add_scatter(x=[None], y=[None], mode="markers", name=rule, marker=style, row=row, col=col)
                seen.add(rule)
            never, at = stop >= len(truth), min(stop, len(truth) - 1)
            page.add_scatter(
                x=[at], y=[min(3.45, truth[at])], mode="markers", showlegend=False, opacity=0.25 if never else 0.9,
                marker=style, hovertemplate=label + (": never" if never else "<br>%{x}"), row=row, col=col,
            )  # fmt: skip
        if example["event"] is not None:
            page.add_vline(x=example["event"], line_dash="dot", line_color="#d4572a", row=row, col=col)
        page.update_yaxes(range=[min(truth) - 0.3, 3.6], row=row, col=col)
    title = "Where rules stop (pale: never; dotted: the run is lost); settings chosen for at most 1 % of false stops"
    return page.update_layout(height=1900, width=1080, template="plotly_white", title=title,
                              legend={"orientation": "h", "y": -0.03})  # fmt: skip


if __name__ == "__main__":
    print(write_results(json.loads((Path(sys.argv[1]) / "results.json").read_text()), Path(sys.argv[1])))
