"""One HTML page about past runs: where stopping rules would have ended them, what that saves and what it loses."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots  # pyright: ignore[reportUnknownVariableType]

from wmtp.report.page import COLOURS, STYLE
from wmtp.stopping.history import History
from wmtp.stopping.replay import Replay
from wmtp.stopping.score import FALSE_STOP, score_of

_DRAWN = 1500
"""Points of a curve that are drawn at most, half of them lowest and half of them highest of their neighbours."""


def stopping_page(shown: Sequence[tuple[History, Sequence[Replay], str]]) -> str:
    """The page: a summary if there are several runs, then a picture and a table for each.

    Args:
        shown: a run's history, what became of it under each rule, and what else there is to say of it.
    """
    title = "Where stopping rules would have ended " + (f"{len(shown)} runs" if len(shown) > 1 else "a run")
    parts = [f"<h1>{title}</h1>"]
    if len(shown) > 1:
        parts.append(_summary([replay for _, replays, _ in shown for replay in replays]))
    for number, (history, replays, note) in enumerate(shown):
        stage = f", stage {history.stage}" if history.stage else ""
        parts.append(f"<h2>{html.escape(history.name + stage)}</h2>")
        parts.append(f'<p class="end">{html.escape(note)}</p>' if note else "")
        figure = _figure(history, replays)
        parts.append(figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"displaylogo": False}))
        parts.append(_table(replays))
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    return f"{page}<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in header)}</tr>{lines}</table>"


def _summary(replays: Sequence[Replay]) -> str:
    rows: list[list[str]] = []
    for rule in dict.fromkeys(replay.rule for replay in replays):
        own = [replay for replay in replays if replay.rule == rule]
        score = score_of(own)
        stopped = str(sum(replay.stopped for replay in own))
        numbers = (f"{score.saved:.1%}", str(score.false_stops), f"{score.regret:.2%}")
        rows.append([rule, str(score.runs), stopped, *numbers])
    return _rows(("rule", "runs", "stopped", "mean saved", f"lost over {FALSE_STOP:.0%}", "mean regret"), rows)


def _table(replays: Sequence[Replay]) -> str:
    rows = [
        [
            replay.rule,
            replay.monitor,
            str(replay.step) if replay.stopped else "to the end",
            replay.reason,
            f"{replay.saved:.1%}",
            "" if replay.regret is None else f"{replay.regret:.2%} of {replay.judge}",
            replay.message,
        ]
        for replay in replays
    ]
    return _rows(("rule", "monitor", "stops at", "reason", "saved", "regret", "why"), rows)


def _figure(history: History, replays: Sequence[Replay]) -> go.Figure:
    """A panel per metric that a rule watches or is judged by, and a vertical line per stop."""
    metrics = list(dict.fromkeys(name for replay in replays for name in (replay.judge, *replay.watched)))
    figure = make_subplots(len(metrics), 1, subplot_titles=metrics, shared_xaxes=True, vertical_spacing=0.12)
    for row, metric in enumerate(metrics, 1):
        points = [(step, value) for step, value in history.points(metric) if math.isfinite(value)]
        x, y = zip(*thinned(points), strict=True) if points else ((), ())
        style = {"color": "#5b6670", "width": 1.4}
        mode = "lines+markers" if len(points) <= 60 else "lines"
        figure.add_trace(go.Scatter(x=x, y=y, mode=mode, line=style, name=metric, showlegend=False), row=row, col=1)
        if not points:
            continue
        best = min(points, key=lambda point: point[1])
        star = {"symbol": "star", "size": 10, "color": "#b58900"}
        figure.add_trace(
            go.Scatter(x=best[:1], y=best[1:], mode="markers", marker=star, name="lowest", showlegend=row == 1),
            row=row,
            col=1,
        )
        for number, replay in enumerate(replay for replay in replays if replay.stopped):
            figure.add_trace(_stop_line(number, replay, [min(y), max(y)], showlegend=row == 1), row=row, col=1)
    figure.update_layout(height=90 + 270 * max(1, len(metrics)), template="plotly_white",
                         margin={"l": 50, "r": 20, "t": 40, "b": 40}, legend={"orientation": "v"})  # fmt: skip
    figure.update_xaxes(title_text="step", title_standoff=4, row=len(metrics), col=1)
    return figure


def _stop_line(number: int, replay: Replay, y: list[float], *, showlegend: bool) -> go.Scatter:
    return go.Scatter(
        x=[replay.step] * 2,
        y=y,
        mode="lines",
        name=f"{replay.rule}: {replay.step} ({replay.reason})",
        line={"color": COLOURS[number % len(COLOURS)], "width": 2, "dash": ("solid", "dash", "dot")[number % 3]},
        legendgroup=str(number),
        showlegend=showlegend,
    )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most 1,500 points that show the same outline: the lowest and the highest of each run of neighbours."""
    size = math.ceil(len(points) / (_DRAWN / 2))
    if size <= 2:
        return list(points)
    chunks = (points[i : i + size] for i in range(0, len(points), size))
    ends = ({min(chunk, key=lambda point: point[1]), max(chunk, key=lambda point: point[1])} for chunk in chunks)
    return [point for pair in ends for point in sorted(pair)]
