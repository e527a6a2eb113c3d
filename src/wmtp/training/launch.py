"""Several processes on this machine, started as torchrun starts them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from wmtp.errors import LostProcessError


def launch(words: Sequence[str], processes: int) -> int:
    """Run `wmtp` with `words` in so many processes; gives the exit code: of the one that failed first, else 0;
    128 + its number if a signal came.

    A process that fails takes the others with it. A SIGTERM or Ctrl-C goes to all; they have 30 seconds to save, and
    whether they did, the run's `status.json` tells.

    Raises:
        LostProcessError: one was killed; says which.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what matters is said below
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "wmtp", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise LostProcessError(
                f"process {rank} of {processes} (pid {failure.pid}) was ended by {name}; go on with: --resume auto"
            ) from error
        return failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0
