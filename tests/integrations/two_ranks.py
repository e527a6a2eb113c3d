"""One of two processes, run by test_ranks.py: each sees another curve, and tells what its callbacks hold at the end."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.integrations.test_lightning import Line, pl
from tests.integrations.test_lightning import rows as light_rows
from tests.integrations.test_transformers import CURVE, PATIENCE, Scripted, make
from wmtp.errors import SettingsError
from wmtp.integrations.lightning import WmtpEarlyStopping
from wmtp.integrations.transformers import WmtpEarlyStoppingCallback

RANK = int(os.environ["RANK"])
MINE = CURVE if RANK == 0 else [*CURVE[:3], *([math.nan] * 100)]


class Mine(Scripted):
    curves = {"eval_loss": MINE, f"eval_of_rank_{RANK}": MINE}  # noqa: RUF012


def with_transformers(folder: Path) -> list[Any]:
    ours = WmtpEarlyStoppingCallback(PATIENCE)
    trainer = make(folder / "transformers", ours, kind=Mine)
    trainer.train()
    assert dist.get_world_size() == 2
    try:
        make(folder / "refused", WmtpEarlyStoppingCallback({"monitor": "eval_of_rank_1"}), kind=Mine).train()
        refused = ""
    except SettingsError as error:
        refused = str(error)
    return [trainer.state.global_step, ours.stop, ours.stopper.get_state(), refused]


def with_lightning(folder: Path) -> list[Any]:
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    class OfThisRank(Line):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_loss", torch.tensor(MINE[max(self.global_step - 1, 0)]))

    ours = WmtpEarlyStopping({"monitor": "val_loss", "patience": 5})
    strategy = DDPStrategy(cluster_environment=LightningEnvironment(), process_group_backend="gloo")
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"], False)
    every: dict[str, Any] = {"val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        default_root_dir=folder,
        max_steps=40,
        callbacks=[ours],
        **every,
        **quiet,
    )
    loaders = [torch.utils.data.DataLoader(light_rows(n), batch_size=4) for n in (160, 8)]
    trainer.fit(OfThisRank(), *loaders)
    return [trainer.global_step, ours.stop, ours.stopper.get_state(), trainer.world_size]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    told = {"transformers": with_transformers(out), "lightning": with_lightning(out)}
    (out / f"rank-{RANK}.json").write_text(json.dumps(told))
    dist.destroy_process_group()
