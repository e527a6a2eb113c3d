"""Metrics: the file is exact over a resume; MLflow shows the truth and never holds up or stops the training."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wmtp.training.tracking import MetricsFile, MlflowTracker

# Making MLflow's tables takes seconds; all tests share one store.


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def rows(path: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in path.read_text().splitlines()]


def never(text: str) -> None:
    raise AssertionError(text)


def test_a_row_is_in_the_file_at_once_and_reads_back_exactly(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", never)
    before = time.time()
    file.append({"step": 3, "loss": 0.1 + 0.2, "name": "ü [x]", "nested": {"a": [1, None, True]}})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert list(row) == ["step", "loss", "name", "nested", "time"]
    assert row["loss"] == 0.1 + 0.2
    assert (row["step"], row["name"], row["nested"]) == (3, "ü [x]", {"a": [1, None, True]})
    assert before - 0.01 <= row["time"] <= time.time() + 0.01
    file.close()


def test_non_finite_numbers_are_strict_json_that_float_reads(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", never)
    file.append({"step": 1, "a": math.nan, "b": math.inf, "c": {"d": [-math.inf]}})
    file.close()

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (row["a"], row["b"], row["c"]["d"][0]) == ("NaN", "Infinity", "-Infinity")
    assert math.isnan(float(row["a"]))
    assert float(row["c"]["d"][0]) == -math.inf


@pytest.mark.parametrize("torn", ["", '{"step": 8, "lo', '{"step": 4, "loss": 1}', "\0\0\0\n"])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path, torn: str) -> None:
    whole = MetricsFile(tmp_path / "whole.jsonl", never)
    for step in range(1, 11):
        whole.append({"stage": "train", "step": step, "loss": 1 / step})
    whole.close()

    path = tmp_path / "metrics.jsonl"
    killed = MetricsFile(path, never)
    for step in range(1, 8):
        killed.append({"stage": "train", "step": step, "loss": 1 / step})
    killed.close()
    with path.open("a") as file:
        file.write(torn)
    resumed = MetricsFile(path, never)
    resumed.truncate("train", 5)
    for step in range(5, 11):
        resumed.append({"stage": "train", "step": step, "loss": 1 / step})
    resumed.close()
    assert rows(path) == rows(tmp_path / "whole.jsonl")
    assert [entry.name for entry in tmp_path.iterdir() if "tmp" in entry.name] == []


@pytest.mark.parametrize(
    ("stage", "step", "left"),
    [
        ("pretrain", 1, []),
        ("pretrain", 3, [("pretrain", 1), ("pretrain", 2)]),
        ("train", 1, [("pretrain", 1), ("pretrain", 2), ("pretrain", 9)]),
        ("train", 2, [("pretrain", 1), ("pretrain", 2), ("pretrain", 9), ("train", 1)]),
        ("train", 6, [("pretrain", 1), ("pretrain", 2), ("pretrain", 9), ("train", 1), ("train", 2)]),
    ],
)
def test_truncation_knows_stages(tmp_path: Path, stage: str, step: int, left: list[tuple[str, int]]) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", never)
    for row_stage, row_step in [("pretrain", 1), ("pretrain", 2), ("pretrain", 9), ("train", 1), ("train", 2)]:
        file.append({"stage": row_stage, "step": row_step})
    file.truncate(stage, step)
    file.close()
    assert [(row["stage"], row["step"]) for row in rows(tmp_path / "metrics.jsonl")] == left


def tracker(store: str, folder: Path, said: list[str], **options: object) -> MlflowTracker:
    folder.mkdir(exist_ok=True)
    settings: dict[str, object] = {"experiment": "tests", "run_name": folder.name, "params": {}, "tags": {}}
    settings |= {"id_file": folder / "mlflow_run_id", "say": said.append, "close_timeout": 120.0}
    return MlflowTracker(store, **{**settings, **options})  # pyright: ignore[reportArgumentType]


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit, "timed out"
        time.sleep(0.02)


def run_of(store: str, folder: Path):
    from mlflow import MlflowClient

    return MlflowClient(store).get_run((folder / "mlflow_run_id").read_text().strip())


def history(store: str, folder: Path, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    run_id = (folder / "mlflow_run_id").read_text().strip()
    return sorted((m.step, m.value) for m in MlflowClient(store).get_metric_history(run_id, key))


@pytest.mark.parametrize(("status", "shown"), [("finished", "FINISHED"), ("failed", "FAILED"), ("preempted", "KILLED")])
def test_a_run_is_shown_with_its_truth(store: str, tmp_path: Path, status: str, shown: str) -> None:
    folder, said = tmp_path / "run", []
    params = {"recipe": {"optim": {"lr": 1e-4, "betas": [0.9, 0.95]}, "none": None}, "long": "x" * 9000}
    log = tracker(store, folder, said, params=params, tags={"team": "a"})
    for step in range(1, 1501):
        log.log(step, {"loss": 1 / step, "lr": 0.5})
    log.log(1500, {"early_stopping/final_step": 1500.0, "early_stopping/counter": math.nan})
    log.tag(**{"early_stopping/reason": "converged", "team": "b"})
    log.finish(status)  # pyright: ignore[reportArgumentType]
    assert said == []
    run = run_of(store, folder)
    assert run.info.status == shown
    assert run.info.run_name == "run"
    assert run.data.params == {
        "recipe.optim.lr": "0.0001",
        "recipe.optim.betas": "[0.9, 0.95]",
        "recipe.none": "null",
        "long": "x" * 5000,
    }
    assert (run.data.tags["team"], run.data.tags["early_stopping/reason"]) == ("b", "converged")
    assert history(store, folder, "loss") == [(step, 1 / step) for step in range(1, 1501)]
    assert history(store, folder, "early_stopping/final_step") == [(1500, 1500.0)]
    assert math.isnan(history(store, folder, "early_stopping/counter")[0][1])


def test_killed_and_resumed_is_one_run_with_each_step_once(store: str, tmp_path: Path) -> None:
    """As after kill -9: what was sent is there, up to a step later than the checkpoint, and nobody has said finish."""
    folder, said = tmp_path / "run", []
    killed = tracker(store, folder, said, params={"lr": 1, "seed": 7})
    for step in range(1, 21):
        killed.log(step, {"loss": step / 3, **({"eval_loss": step / 7} if step % 5 == 0 else {})})
    wait_until((folder / "mlflow_run_id").exists)
    wait_until(lambda: len(history(store, folder, "loss")) == 20)
    assert run_of(store, folder).info.status == "RUNNING"

    resumed = tracker(store, folder, said, params={"lr": 2, "seed": 7, "new": "yes"})
    wait_until(lambda: "new" in run_of(store, folder).data.params)
    assert run_of(store, folder).info.status == "RUNNING"
    for step in range(13, 31):
        resumed.log(step, {"loss": step / 3, **({"eval_loss": step / 7} if step % 5 == 0 else {})})
    resumed.finish("finished")
    run = run_of(store, folder)
    assert history(store, folder, "loss") == [(step, step / 3) for step in range(1, 31)]
    assert history(store, folder, "eval_loss") == [(step, step / 7) for step in range(5, 31, 5)]
    assert run.info.status == "FINISHED"
    assert (run.data.params, run.data.tags["changed.lr"]) == ({"lr": "1", "seed": "7", "new": "yes"}, "2")
    killed.finish("failed")
    assert said == []


def test_a_preempted_run_is_running_again_when_resumed(store: str, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", []
    tracker(store, folder, said).finish("preempted")
    assert run_of(store, folder).info.status == "KILLED"
    resumed = tracker(store, folder, said)
    wait_until(lambda: run_of(store, folder).info.status == "RUNNING")
    resumed.finish("finished")
    assert run_of(store, folder).info.status == "FINISHED"


def test_a_run_that_the_store_has_lost_gets_a_new_one(store: str, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", []
    folder.mkdir()
    (folder / "mlflow_run_id").write_text("0" * 32 + "\n")
    log = tracker(store, folder, said)
    log.log(5, {"loss": 1.0})
    log.finish("finished")
    assert history(store, folder, "loss") == [(5, 1.0)]
    assert len(said) == 1
    assert "no longer has this run" in said[0]


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in held:
            connection.close()


def assert_training_is_unaffected(uri: str, folder: Path) -> list[str]:
    said: list[str] = []
    start = time.monotonic()
    log = tracker(uri, folder, said, close_timeout=1.0)
    slowest = 0.0
    for step in range(1, 501):
        before = time.monotonic()
        log.log(step, {"loss": 1.0, "lr": 2.0})
        log.tag(step=str(step))
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < 0.5, "a call waited for the server"
    before = time.monotonic()
    log.finish("finished")
    assert time.monotonic() - before < 2.0, "finish is not bounded"
    assert time.monotonic() - start < 5.0
    assert "lacks 500 rows and the run's end" in said[-1]
    return said


def test_an_unreachable_server_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow  # noqa: F401 - so that the thread gets as far as the server within the time it has

    monkeypatch.setattr("wmtp.training.tracking._FIRST_RETRY", 0.05)
    said = assert_training_is_unaffected("http://127.0.0.1:9", tmp_path / "run")
    assert len(said) == 2
    assert "MLflow at http://127.0.0.1:9 fails" in said[0]
    assert "training goes on" in said[0]
    assert len(said[0]) < 350


def test_a_server_that_does_not_answer_holds_nobody_up(tmp_path: Path, silent_server: str) -> None:
    assert_training_is_unaffected(silent_server, tmp_path / "run")


def test_what_waited_during_an_outage_is_sent_after_it(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    for pause in ("_FIRST_RETRY", "_INTERVAL"):
        monkeypatch.setattr(f"wmtp.training.tracking.{pause}", 0.02)
    send, calls = MlflowClient.log_batch, []

    def broken_at_times(self: MlflowClient, *args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) % 3:
            raise ConnectionError("the line is down")
        return send(self, *args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(MlflowClient, "log_batch", broken_at_times)
    folder, said = tmp_path / "run", []
    log = tracker(store, folder, said, params={"a": 1}, tags={"b": "c"})
    for step in range(1, 2001):
        log.log(step, {"loss": float(step)})
    wait_until((folder / "mlflow_run_id").exists)
    wait_until(lambda: len(history(store, folder, "loss")) == 2000 and "b" in run_of(store, folder).data.tags)
    monkeypatch.setattr(MlflowClient, "log_batch", send)
    log.finish("finished")
    assert history(store, folder, "loss") == [(step, float(step)) for step in range(1, 2001)]
    assert run_of(store, folder).data.params == {"a": "1"}
    assert [message for message in said if "the line is down" not in message] == []
    assert len(said) == 1


def test_a_full_queue_drops_the_oldest_and_counts_them(tmp_path: Path, silent_server: str) -> None:
    said: list[str] = []
    log = tracker(silent_server, tmp_path / "run", said, close_timeout=0.1)
    for step in range(10_250):
        log.log(step, {"loss": 1.0})
    log.finish("failed")
    assert "lacks 10250 rows" in said[-1]


class FullDisk:
    """Takes some bytes, then none, until there is room again."""

    def __init__(self, path: Path, room: int) -> None:
        self.path, self.room = path, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = data[: self.room]
        self.room -= len(taken)
        with self.path.open("ab") as file:
            return file.write(taken)

    def close(self) -> None: ...


def test_rows_that_a_full_disk_does_not_take_are_kept_and_come_later(tmp_path: Path) -> None:
    told: list[str] = []
    file = MetricsFile(tmp_path / "metrics.jsonl", told.append)
    disk = FullDisk(tmp_path / "metrics.jsonl", room=130)
    file._file.close()
    file._file = disk  # type: ignore[assignment]
    for step in range(1, 6):
        file.append({"stage": "train", "step": step})
    assert len(told) == 1
    assert "metrics.jsonl can't be written, its rows wait in memory" in told[0]
    assert (tmp_path / "metrics.jsonl").stat().st_size == 130
    disk.room = 10_000
    file.append({"stage": "train", "step": 6})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("room", [10_000, 0])
def test_rows_that_wait_are_tried_again_at_the_end_and_missed_aloud(tmp_path: Path, room: int) -> None:
    told: list[str] = []
    file = MetricsFile(tmp_path / "metrics.jsonl", told.append)
    file._file.close()
    disk = FullDisk(tmp_path / "metrics.jsonl", room=0)
    file._file = disk  # type: ignore[assignment]
    file.append({"stage": "train", "step": 1})
    disk.room = room
    file.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == (1 if room else 0)
    assert [("wait in memory" in text, "lacks its last rows" in text) for text in told] == (
        [(True, False)] if room else [(True, False), (False, True)]
    )
