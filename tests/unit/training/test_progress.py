"""The bar on a terminal, the lines elsewhere."""

from __future__ import annotations

import re
import sys
from io import StringIO

import pytest
from rich.console import Console

from wmtp.training.progress import ProgressBar
from wmtp.types import Verdict


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until its only item is changed."""
    now = [100.0]
    monkeypatch.setattr("wmtp.training.progress.time.monotonic", lambda: now[0])
    return now


def plain() -> Console:
    return Console(file=StringIO(), force_terminal=False, width=80)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_plain_lines_say_all_of_it(clock: list[float]) -> None:
    console = plain()
    with ProgressBar(console) as progress:
        progress.begin("stage 2", 200, 100)
        clock[0] += 30.0  # 10 steps in 30 s: 90 more take 270 s
        progress.update(
            110, {"loss": 2.34567, "eval_loss": 3.0, "lr": 1e-5}, 12345.6, Verdict(evidence={"distance": 0.6})
        )
    assert lines(console) == ["stage 2 110/200 loss 2.346  eval_loss 3  12,346 tokens/s  0:04:30 left  stop 60% away"]


def test_updates_that_come_seldom_are_all_shown(clock: list[float]) -> None:
    console = plain()
    with ProgressBar(console) as progress:
        progress.begin("s", 100)
        for step in (15, 27, 39, 41):
            progress.update(step, {"loss": 1.0}, 1.0)
    assert [line.split()[1] for line in lines(console)] == ["15/100", "27/100", "39/100", "41/100"]


def test_the_last_held_out_loss_stays_in_view(clock: list[float]) -> None:
    console = plain()
    with ProgressBar(console) as progress:
        progress.begin("s", 9)
        progress.update(1, {"loss": 2.0, "eval_loss": 5.5}, 1.0)
        progress.update(2, {"loss": float("nan")}, 1.0, Verdict(stop=True, evidence={"distance": 0.0}))
    assert "loss nan  eval_loss 5.5" in lines(console)[1]
    assert lines(console)[1].endswith("left  stop")


def test_messages_are_printed_as_they_are() -> None:
    console = plain()
    progress = ProgressBar(console)
    message = "weights [B,S,H] [bold]not markup[/bold] " + "x" * 200
    progress.say(message)
    with progress:
        progress.say("second")
    progress.say("third")
    assert lines(console) == [message, "second", "third"]


def test_on_a_terminal_there_is_a_bar_with_messages_above(clock: list[float]) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=120, color_system=None)
    with ProgressBar(console) as progress:
        progress.begin("stage 2", 200, 100)
        clock[0] += 10.0
        progress.update(149, {"loss": 2.5}, 1000.0, Verdict(evidence={}))
        progress.say("checkpoint saved [1]")
        progress.update(150, {"loss": 2.25}, 1000.0, Verdict(evidence={"distance": 0.25}))
    assert isinstance(console.file, StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert re.search(r"stage 2 .*━.* 150/200 loss 2\.25  1,000 tokens/s  0:00:10 left  stop 25% away", text)
    assert "\ncheckpoint saved [1]" in text.replace("\r", "\n")


def test_stdout_stays_free_for_json(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as progress:
        progress.begin("s", 3)
        progress.update(1, {"loss": 1.0}, 1.0)
        sys.stdout.write("{}\n")
        progress.say("done")
    captured = capsys.readouterr()
    assert captured.out == "{}\n"
    assert captured.err.count("\n") == 2
