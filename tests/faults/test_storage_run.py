"""A whole run of two processes whose checkpoints go to S3, while the line to it breaks and is mended."""

from __future__ import annotations

import os
import shutil
import time
from functools import partial
from pathlib import Path

from tests.distributed.place import TRAIN, same, status, weights
from tests.distributed.ranks import start
from tests.faults.storage import BUCKET, Line, Store, s3_server
from tests.faults.test_storage import _bucket, line, store

__all__ = ["_bucket", "line", "s3_server", "store"]

AWAY = ("--set", f"paths.checkpoints.base_path=s3://{BUCKET}/team", "--set", "paths.checkpoints.keep_last=2")


def with_environment(rank: int, *, values: dict[str, str]) -> None:
    """The server that forks has the environment of the first test."""
    del rank
    os.environ |= values


def published(store: Store) -> list[str]:
    keys = store.keys()
    return sorted(key.split("/")[-2] for key in keys if key.endswith("manifest.json"))


def test_the_line_breaks_while_a_checkpoint_is_sent_and_is_mended_later(place: Path, line: Line, store: Store) -> None:
    here = partial(with_environment, values={name: os.environ[name] for name in os.environ if name.startswith("AWS_")})
    more = ("--set", "train.max_steps=60", "--set", "train.num_epochs=100")
    whole = start(place, 2, *TRAIN, *more, "--run-name", "whole")
    assert whole.wait() == [0, 0], whole.log()

    job = start(place, 2, *TRAIN, *more, *AWAY, prepare=here)
    while len(published(store)) < 1:
        assert all(rank.is_alive() for rank in job.ranks), job.log()
        time.sleep(0.05)
    line.fail_after(10_000_000, "cut")  # in the middle of a shard of 14 MB
    line.wait_until("cut")
    newest = published(store)[-1]
    while "is not saved, training goes on" not in job.log():
        assert all(rank.is_alive() for rank in job.ranks), job.log()
        time.sleep(0.05)
    assert published(store)[-1] == newest, "what was sent in part is no checkpoint"
    line.mend()
    assert job.wait() == [0, 0], job.log()
    assert same(weights(place), weights(place, "whole"))
    assert published(store)[-1] == "step-00000060"
    assert len(published(store)) == 2, "old ones are deleted there"
    assert str(status(place)["checkpoint"]).endswith("step-00000060")

    # On another machine, with nothing but what is in the store: it goes on there, with one process.
    shutil.rmtree(place / "runs" / "small")
    again = start(place, 1, *TRAIN, *AWAY, *more[2:], "--set", "train.max_steps=62", "--resume", "auto", prepare=here)
    assert again.wait() == [0], again.log()
    assert "resuming stage train at step 60" in again.log()
