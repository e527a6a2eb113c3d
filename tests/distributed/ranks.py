"""Runs of several processes that start at once: forked from a server that has imported everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch.distributed import TCPStore

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["wmtp.job", "tests.distributed.ranks"])


JOBS: list[Job] = []
"""All that were started; a test that fails leaves some running."""


@dataclass(frozen=True)
class Job:
    """`wmtp` in some processes, as a launcher starts them.

    Attributes:
        ranks: the processes.
        folder: where they run; each writes to `rank-N.log` there.
        store: through which they find each other.
    """

    ranks: Sequence[BaseProcess]
    folder: Path
    store: TCPStore

    def wait(self, seconds: float = 120, hear: float = 8) -> list[int | None]:
        """Exit codes; as a launcher does, the others are ended when one has failed, after `hear` seconds."""
        deadline, failed = time.monotonic() + seconds, None
        while any(rank.is_alive() for rank in self.ranks) and time.monotonic() < deadline:
            time.sleep(0.02)
            if failed is None and any(rank.exitcode for rank in self.ranks):
                failed = time.monotonic()
            if failed is not None and time.monotonic() > failed + hear:
                break
        codes = [rank.exitcode for rank in self.ranks]
        self.kill()
        return codes

    def kill(self) -> None:
        """SIGKILL to all of them."""
        for rank in self.ranks:
            rank.kill()
        for rank in self.ranks:
            rank.join()

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """A signal to some of them, to all if none is named."""
        for rank in ranks or range(len(self.ranks)):
            pid = self.ranks[rank].pid
            assert pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def log(self, rank: int = 0) -> str:
        return (self.folder / f"rank-{rank}.log").read_text(encoding="utf-8")


def start(folder: Path, ranks: int, *words: str, prepare: Callable[[int], None] | None = None) -> Job:
    """Start `wmtp WORDS` in `folder`; with one rank as a process alone. `prepare` is called in each before, with its
    rank; without words nothing else is."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the launcher has it
    processes = [
        SERVER.Process(target=_run, args=(folder, rank, ranks, store.port, words, prepare)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    JOBS.append(Job(processes, folder, store))
    return JOBS[-1]


def _run(
    folder: Path, rank: int, ranks: int, port: int, words: Sequence[str], prepare: Callable[[int], None] | None
) -> None:
    """One process: everything as after `torchrun`, but for the imports."""
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    os.environ |= {"OMP_NUM_THREADS": "1", "WMTP_CACHE": str(folder / "cache")}
    if ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
    import torch

    from wmtp import cli

    torch.set_num_threads(1)
    cli.RANK = rank if ranks > 1 else None  # it was imported before this was one of several
    if prepare is not None:
        prepare(rank)
    if not words:
        return
    sys.argv = ["wmtp", *words]
    cli.main()
