"""One HTML page about a search for stopping settings: compute saved against false stops."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from wmtp.report.page import COLOURS, STYLE


@dataclass(frozen=True, slots=True)
class Tried:
    """A rule of the search: its kinds of rule, the mean share of compute that it saves, its share of false stops."""

    name: str
    saved: float
    false_share: float


def tuning_page(text: Sequence[str], tried: Sequence[Tried], reported: Sequence[Tried]) -> str:
    """The page: the picture, and the text that the terminal shows.

    Args:
        text: lines.
        tried: all rules, on the runs that choose.
        reported: the rules of the front, on the other runs.
    """
    figure = go.Figure()
    for number, name in enumerate(dict.fromkeys(one.name for one in tried)):
        points = [one for one in tried if one.name == name]
        marker = {"color": COLOURS[number % len(COLOURS)], "size": 6, "opacity": 0.45}
        _add(figure, points, name, marker)
    star = {"color": "#1c2127", "size": 12, "symbol": "star"}
    _add(figure, reported, "the front, on the other runs", star)
    figure.update_layout(height=520, template="plotly_white", margin={"l": 60, "r": 20, "t": 30, "b": 50})
    figure.update_xaxes(title_text="false stops, share of the runs", tickformat=".0%")
    figure.update_yaxes(title_text="compute saved, mean share", tickformat=".0%")
    chart = figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    title = "Settings of early stopping, tuned on past runs"
    style = STYLE + "pre{max-height:none}"
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    shown = html.escape("\n".join(text))
    return f"{page}<body><h1>{title}</h1>{chart}<pre>{shown}</pre></body></html>\n"


def _add(figure: go.Figure, points: Sequence[Tried], name: str, marker: Mapping[str, object]) -> None:
    x, y = [point.false_share for point in points], [point.saved for point in points]
    figure.add_trace(go.Scatter(x=x, y=y, mode="markers", name=name, marker=marker))
