"""Settings are chosen on one half of the runs and reported on the other; the counts are those of a slow loop."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from pathlib import Path

import pytest
from scipy.stats import beta

from wmtp.errors import UserError
from wmtp.past_runs import resolve, stopper_of
from wmtp.stop_tune import SPACES, lines, score, tune
from wmtp.stopping import EarlyStoppingConfig
from wmtp.stopping.replay import replay
from wmtp.stopping.score import Score, pareto
from wmtp.stopping.tree import LEAVES


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Eight runs that fall for 40 to 75 of 150 steps, and then only make noise."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for number in range(8):
        write(folder / f"run{number}.csv", number, falls=40 + 5 * number)
    return folder


def write(path: Path, seed: int, falls: int) -> None:
    draw = random.Random(seed)
    losses = [3 - 2 * min(step / falls, 1) + draw.gauss(0, 0.002) for step in range(1, 151)]
    path.write_text("step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in enumerate(losses, 1)))


@pytest.mark.parametrize("kind", SPACES)
def test_every_knob_is_a_setting_in_its_bounds(kind: str) -> None:
    default, names = LEAVES[kind](), {field.name for field in fields(LEAVES[kind])}
    for name, knob in SPACES[kind].items():
        assert name in names
        for value in knob.choices or (knob.low, knob.high):
            rule = {kind: {name: int(value) if knob.whole else value}}
            EarlyStoppingConfig.from_mapping({"enabled": True, "rule": rule})
        usual = getattr(default, name)
        assert usual == 0 or (usual in knob.choices if knob.choices else knob.low <= usual <= knob.high), name


@pytest.mark.parametrize(("false", "of"), [(0, 1), (0, 20), (3, 9), (9, 10), (10, 10)])
def test_what_few_runs_can_tell(false: int, of: int) -> None:
    expected = 1.0 if false == of else beta.ppf(0.95, false + 1, of - false)
    assert Score(of, 0.0, false, 0.0).false_at_most == pytest.approx(expected, abs=1e-9)


def test_the_front_is_what_nothing_beats() -> None:
    draw = random.Random(1)
    found = {str(i): Score(9, draw.randint(0, 20) / 20, draw.randint(0, 9), draw.random()) for i in range(60)}
    front = pareto(found)
    corners = {
        (one.false_stops, one.saved)
        for one in found.values()
        if not any(
            other.false_stops <= one.false_stops and other.saved >= one.saved
            and (other.false_stops, other.saved) != (one.false_stops, one.saved)
            for other in found.values()
        )
    }  # fmt: skip
    assert {(found[rule].false_stops, found[rule].saved) for rule in front} == corners
    assert len(front) == len(corners) >= 3
    for rule in front:  # of equals the one that loses least
        equals = (o for o in found.values() if (o.false_stops, o.saved) == (found[rule].false_stops, found[rule].saved))
        assert found[rule].regret == min(equal.regret for equal in equals)
    assert [found[rule].false_stops for rule in front] == sorted((n for n, _ in corners), reverse=True)


def test_a_score_counts_stops_that_lost(tmp_path: Path) -> None:
    # Patience 2 stops both at step 4: a is through there, b makes half of its improvement afterwards.
    for name, losses in (("a", [3, 2, 2, 2, 2]), ("b", [3, 2, 2, 2, 1, 1, 1, 1])):
        text = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses, 1))
        (tmp_path / f"{name}.csv").write_text(f"step,loss\n{text}")
    found = score(resolve([str(tmp_path)]), {"patience": {"patience": 2}}, "loss", "loss")
    assert (found.runs, found.false_stops, found.false_share) == (2, 1, 0.5)
    assert found.saved == pytest.approx((1 / 5 + 4 / 8) / 2)
    assert found.regret == pytest.approx(0.5 / 2)


def test_what_comes_out_holds_when_replayed(runs: Path, tmp_path: Path) -> None:
    tuned = tune([str(runs)], trials=30, page=tmp_path / "tune.html")
    assert tuned.best is not None
    assert tuned.best.chosen_on.false_stops == 0
    assert tuned.best.chosen_on.saved > 0.15, "the runs stand still for half of their steps and more"
    assert sorted(tuned.chosen_on + tuned.reported_on) == [f"run{number}" for number in range(8)]
    assert (len(tuned.chosen_on), len(tuned.reported_on)) == (4, 4)
    for point in tuned.front:
        block = {"enabled": True, "monitor": "loss", "rule": point.rule}
        for names, told in ((tuned.chosen_on, point.chosen_on), (tuned.reported_on, point.reported_on)):
            histories = resolve([str(runs / f"{name}.csv") for name in names])
            found = [replay(history, stopper_of("", block), name="") for history in histories]
            assert told.saved == pytest.approx(sum(one.saved for one in found) / 4)
            assert told.false_stops == sum((one.regret or 0) > 0.01 for one in found)
    page = (tmp_path / "tune.html").read_text()
    assert "the front, on the other runs" in page
    assert "<script src" not in page
    text = "\n".join(lines(tuned))
    assert "no false stop in 4 only says: under 53%" in text  # 1 - 0.05^(1/4)
    assert EarlyStoppingConfig.from_mapping(tuned.block or {}).rule == tuned.best.rule
    assert text.count("*") == 1


def test_a_seed_decides_all(runs: Path) -> None:
    first, again, other = (tune([str(runs)], trials=12, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert json.dumps(first.to_json()) == json.dumps(again.to_json())
    assert other.chosen_on != first.chosen_on


def test_the_other_half_has_no_say(runs: Path) -> None:
    """Whatever the runs that report look like, the same rules are on the front."""
    before = tune([str(runs)], trials=15)
    for name in before.reported_on:
        write(runs / f"{name}.csv", seed=99, falls=150)
    after = tune([str(runs)], trials=15)
    assert [point.rule for point in after.front] == [point.rule for point in before.front]
    assert [point.chosen_on for point in after.front] == [point.chosen_on for point in before.front]
    assert [point.reported_on for point in after.front] != [point.reported_on for point in before.front]


def test_more_false_stops_are_taken_only_if_allowed(runs: Path) -> None:
    strict, lax = (tune([str(runs)], trials=40, max_false=share) for share in (0.0, 1.0))
    assert strict.front == lax.front
    assert lax.best is lax.front[0]
    assert strict.best is not None
    assert strict.best.chosen_on.false_stops == 0


def test_runs_that_do_not_fit_are_left_out_and_two_must_remain(runs: Path, tmp_path: Path) -> None:
    (runs / "zz.csv").write_text("step,val\n1,2\n")
    tuned = tune([str(runs)], trials=2)
    assert len(tuned.left_out) == 1
    assert "no metric 'loss' is logged; did you mean val?" in tuned.left_out[0] or "there are val" in tuned.left_out[0]
    with pytest.raises(UserError, match="1 runs to tune on; two is the least"):
        tune([str(runs / "run0.csv"), str(runs / "zz.csv")], trials=2)
