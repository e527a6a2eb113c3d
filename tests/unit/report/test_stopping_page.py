"""The page of `wmtp stop replay`."""

from __future__ import annotations

import random

from wmtp.report.stopping import stopping_page, thinned
from wmtp.stopping import LossEarlyStopping, Observation
from wmtp.stopping.history import History
from wmtp.stopping.replay import replay


def history(name: str, losses: list[float]) -> History:
    return History(name, "", tuple(Observation(step, {"loss": loss}) for step, loss in enumerate(losses, 1)))


def test_a_thinned_curve_has_the_same_outline() -> None:
    draw = random.Random(0)
    points = [(step, draw.gauss(0, 1)) for step in range(10_007)]
    found = thinned(points)
    assert len(found) <= 1500
    assert found == sorted(set(found) & set(points))
    for start in range(0, 10_000, 500):  # no stretch of it is lower or higher than what is drawn
        part = [value for step, value in points if start <= step < start + 500]
        drawn = [value for step, value in found if start - 14 <= step < start + 514]
        assert min(drawn) <= min(part)
        assert max(drawn) >= max(part)
    assert thinned(points[:1500]) == points[:1500]


def test_names_are_text_and_every_stop_is_a_line() -> None:
    runs = [history("<b>one", [3, 2, 2, 2, 2]), history("two", [3.0, float("nan"), 1.0])]
    rules = {f"wait < {patience}": LossEarlyStopping({"enabled": True, "patience": patience}) for patience in (2, 3)}
    shown = [(run, [replay(run, rule, name=name) for name, rule in rules.items()], "a & b") for run in runs]
    page = stopping_page(shown)
    assert "<h2>&lt;b&gt;one</h2>" in page
    assert "<b>one" not in page
    assert "a &amp; b" in page
    for stop in ("wait \\u003c 2: 4 (converged)", "wait \\u003c 3: 5 (converged)"):
        assert page.count(f'"{stop}"') == 1
    assert page.count("<td>to the end</td>") == 2
    assert "Where stopping rules would have ended 2 runs" in page
    assert "<script src" not in page
