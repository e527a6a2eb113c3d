"""Two processes whose metrics differ: one decision, the same everywhere, and no hang."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_two_ranks_hold_the_same_decision_reason_and_evidence(tmp_path: Path) -> None:
    """From step 4 on rank 1's own metric is NaN; rank 0's is the curve that stops at 11."""
    pytest.importorskip("lightning.pytorch")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.two_ranks", str(tmp_path)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=140)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-4000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    steps, stop, state, refused = first["transformers"]
    assert (steps, stop["step"], stop["reason"], state["best_value"]) == (11, 11, "converged", 1.5)
    assert "no metric 'eval_of_rank_1', did you mean eval_of_rank_0" in refused, "rank 1 has it, and must not train on"
    steps, stop, state, ranks = first["lightning"]
    assert (steps, stop["step"], stop["reason"], state["best_value"], ranks) == (11, 11, "converged", 1.5, 2)
