"""Checkpoints: exact, whole or not there, and damage is named."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wmtp.errors import CheckpointError
from wmtp.training import checkpoint
from wmtp.training.checkpoint import discard_after, newest_valid, open_checkpoint, prune, save
from wmtp.training.tensor_files import read_tensors


def unexpected(message: str) -> None:
    raise AssertionError(message)


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """A small training state whose every value follows from `step`."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 4, generator=generator)
    return {
        "model": {"a.weight": weight, "a.half": weight.bfloat16(), "a.strided": torch.randn(4, 3).t().copy_(weight)},
        "optimizer": {"a.weight/exp_avg": weight * 2, "a.weight/step": torch.tensor(float(step))},
        "rng": {"cpu": torch.arange(5, dtype=torch.uint8) + step},
        "data": {"position": torch.tensor(step * 10**12, dtype=torch.int64)},
        "odd": {"empty": torch.empty(0, 3), "nan": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])},
    }


def flat(groups: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{group}.{name}": tensor for group, members in groups.items() for name, tensor in members.items()}


def assert_same(got: dict[str, dict[str, torch.Tensor]], want: dict[str, dict[str, torch.Tensor]]) -> None:
    """Equal to the bit, NaN payloads and the sign of zero included."""
    left, right = flat(got), flat(want)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert tensor.contiguous().reshape(-1).view(torch.uint8).tolist() == (
            right[name].contiguous().reshape(-1).view(torch.uint8).tolist()
        ), name


def assert_loads(root: Path, step: int, say: Callable[[str], None] = unexpected) -> None:
    found = newest_valid(root, say)
    assert found is not None
    assert found.step == step
    assert found.run_state == {"step": step}
    assert_same(read_tensors(found.path), tensors(step))


def fill(root: Path, *steps: int) -> None:
    for step in steps:
        save(root, step, tensors(step), {"step": step}, say=unexpected)


def names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir())


def test_round_trip_is_exact_to_the_bit(tmp_path: Path) -> None:
    run_state = {"seed": 2**63 + 1, "best": 0.1 + 0.2, "never": float("inf"), "nested": [{"a": None}], "ü": True}
    path = save(tmp_path / "checkpoints", 1200, tensors(7), run_state, say=unexpected)
    assert path.name == "step-00001200"
    found = open_checkpoint(path)
    assert_same(read_tensors(found.path), tensors(7))
    assert (found.step, dict(found.run_state)) == (1200, run_state)
    assert names(tmp_path / "checkpoints") == ["step-00001200"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "absent", unexpected) is None
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-00000001.tmp-0123").mkdir()
    (tmp_path / "other").mkdir()
    assert newest_valid(tmp_path, unexpected) is None


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "run_state.json", "manifest.json"])
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_one_flipped_bit_is_found_and_named(tmp_path: Path, name: str, where: float) -> None:
    fill(tmp_path, 20, 30)
    file = tmp_path / "step-00000030" / name
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1
    file.write_bytes(content)
    said: list[str] = []
    assert_loads(tmp_path, 20, said.append)
    assert len(said) == 1
    assert "step-00000030" in said[0]
    assert name in said[0]
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        open_checkpoint(tmp_path / "step-00000030")


def test_every_byte_of_the_manifest_is_guarded(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    file = tmp_path / "step-00000001" / "manifest.json"
    content = file.read_bytes()
    for bit in range(0, len(content) * 8, 5):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert "manifest.json" in (checkpoint.find_damage(file.parent) or ""), f"bit {bit} is not guarded"
    file.write_bytes(content)
    assert checkpoint.find_damage(file.parent) is None


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "run_state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "longer", "removed", "a folder"])
def test_other_damage_is_found_and_named(tmp_path: Path, name: str, damage: str) -> None:
    fill(tmp_path, 20, 30)
    file = tmp_path / "step-00000030" / name
    content = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "removed":
        file.write_bytes({"cut": content[: len(content) * 9 // 10], "emptied": b"", "longer": content + b"x"}[damage])
    said: list[str] = []
    assert_loads(tmp_path, 20, said.append)
    assert len(said) == 1
    assert name in said[0]


def test_files_of_two_checkpoints_mixed_are_found(tmp_path: Path) -> None:
    fill(tmp_path, 20, 30)
    shutil.copy(tmp_path / "step-00000020/__0_0.distcp", tmp_path / "step-00000030/__0_0.distcp")
    said: list[str] = []
    assert_loads(tmp_path, 20, said.append)
    assert "__0_0.distcp has changed" in said[0]


def test_all_damaged_is_an_error_never_a_fresh_start(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    (tmp_path / "step-00000001/manifest.json").unlink()
    (tmp_path / "step-00000002/.metadata").write_bytes(b"")
    said: list[str] = []
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        newest_valid(tmp_path, said.append)
    assert len(said) == 2


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        open_checkpoint(tmp_path / "step-00000001")


def test_a_whole_checkpoint_is_left_and_a_damaged_one_replaced(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    inode = (tmp_path / "step-00000005").stat().st_ino
    save(tmp_path, 5, tensors(6), {"step": 6}, say=unexpected)
    assert (tmp_path / "step-00000005").stat().st_ino == inode
    assert_loads(tmp_path, 5)
    (tmp_path / "step-00000005/run_state.json").write_text("{}")
    fill(tmp_path, 5)
    assert_loads(tmp_path, 5)
    assert names(tmp_path) == ["step-00000005"]


@pytest.mark.parametrize(
    ("keep_last", "protect", "left"),
    [(1, set(), [50]), (2, set(), [40, 50]), (2, {10}, [10, 40, 50]), (9, set(), [10, 20, 30, 40, 50])],
)
def test_prune_keeps_the_newest_and_the_best(
    tmp_path: Path, keep_last: int, protect: set[int], left: list[int]
) -> None:
    fill(tmp_path, 10, 20, 30, 40, 50)
    prune(tmp_path, keep_last, protect, unexpected)
    assert names(tmp_path) == [f"step-{step:08d}" for step in left]


def test_prune_counts_no_wrecks_and_removes_them(tmp_path: Path) -> None:
    fill(tmp_path, 10, 20, 30, 40)
    (tmp_path / "step-00000040/manifest.json").unlink()
    (tmp_path / "step-00000030/__0_0.distcp").write_bytes(b"short")
    shutil.copytree(tmp_path / "step-00000010", tmp_path / f"step-00000050.tmp-{'a' * 32}")
    (tmp_path / "step-mine.tmp").mkdir()
    prune(tmp_path, 1, set(), unexpected)
    assert names(tmp_path) == ["step-00000020", "step-mine.tmp"]
    assert_loads(tmp_path, 20)


def test_prune_deletes_nothing_where_nothing_is_whole(tmp_path: Path) -> None:
    fill(tmp_path, 10, 20)
    for step in (10, 20):
        (tmp_path / f"step-{step:08d}/manifest.json").unlink()
    prune(tmp_path, 1, set(), unexpected)
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    with pytest.raises(ValueError, match="keep_last is 0"):
        prune(tmp_path, 0, set(), unexpected)


def test_the_one_just_written_survives_a_later_one_with_a_flipped_bit(tmp_path: Path) -> None:
    """The wreck has the newer step and full length, so it counts; the only valid one must not go for it."""
    fill(tmp_path, 10, 30)
    file = tmp_path / "step-00000030/__0_0.distcp"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    save(tmp_path, 20, tensors(20), {"step": 20}, say=unexpected, keep_last=1)
    said: list[str] = []
    assert_loads(tmp_path, 20, said.append)
    assert len(said) == 1


def test_a_failed_deletion_is_said_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 10, 20, 30)
    rmtree = shutil.rmtree

    def refuse_first(path: Path, **options: bool) -> None:
        if path.name.startswith("step-00000010"):
            raise PermissionError(13, "Permission denied", str(path))
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", refuse_first)
    said: list[str] = []
    prune(tmp_path, 1, set(), said.append)
    assert len(said) == 1
    assert "Permission denied" in said[0]
    monkeypatch.undo()
    assert_loads(tmp_path, 30)
    prune(tmp_path, 1, set(), unexpected)
    assert names(tmp_path) == ["step-00000030"], "the next time it works, what was left goes too"


def test_discard_after(tmp_path: Path) -> None:
    fill(tmp_path, 10, 20, 30, 40)
    (tmp_path / "step-00000030/manifest.json").unlink()
    discard_after(tmp_path, 20)
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    discard_after(tmp_path / "absent", 0)


def test_too_little_space_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 10)
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(CheckpointError, match=r"needs 4\.4 MB, free are 0\.0 MB") as refused:
        save(tmp_path, 20, {"model": {"a": torch.zeros(1_000_000)}}, {}, say=unexpected)
    assert str(tmp_path) in str(refused.value)
    assert names(tmp_path) == ["step-00000010"]


@pytest.mark.parametrize("limit", [200_000, 2_500_000, 3_999_000])
def test_a_disk_that_fills_up_while_writing_leaves_the_old_one(tmp_path: Path, limit: int) -> None:
    fill(tmp_path, 10)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(CheckpointError, match=r"File too large.*earlier checkpoints are as they were"):
            save(tmp_path, 20, {"model": {"a": torch.zeros(500_000), "b": torch.zeros(500_000)}}, {}, say=unexpected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert names(tmp_path) == ["step-00000010"]
    assert_loads(tmp_path, 10)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="can't be written"):
        save(tmp_path / "checkpoints", 1, tensors(1), {}, say=unexpected)


def test_ctrl_c_while_saving_goes_through_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch wraps even KeyboardInterrupt; it must come out as what it is."""
    fill(tmp_path, 10)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 20, tensors(20), {}, say=unexpected)
    assert names(tmp_path) == ["step-00000010"]


def save_until_killed(root: Path, kill_at: int, last: int) -> None:
    """Saves steps 1..last; kills itself before file operation number `kill_at` of the third save."""
    count = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    root.mkdir()
    with (root / "done").open("a") as done:
        for step in range(1, last + 1):
            if step == 3:
                for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
                    setattr(os, name, counted(getattr(os, name)))
            save(root, step, tensors(step), {"step": step}, say=unexpected, keep_last=1, protect={1})
            done.write(".")
            done.flush()


def forked(root: Path, kill_at: int, last: int) -> int:
    pid = os.fork()
    if pid == 0:
        save_until_killed(root, kill_at, last)
        os._exit(0)
    return pid


def kill_at_every_operation(top: Path) -> None:
    """Killed before the 1st, the 2nd, .. operation, until a process lives to save all three."""
    for at in itertools.count(1):
        if os.waitpid(forked(top / f"{at:03d}", at, 3), 0)[1] == 0:
            return


def kill_at_random_moments(top: Path) -> None:
    chance = random.Random(0)
    for n in range(10):
        pid = forked(top / f"{n:03d}", 0, 500)
        while not (top / f"{n:03d}" / "step-00000001").exists():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("kill", [kill_at_every_operation, kill_at_random_moments])
def test_kill_9_while_saving(tmp_path: Path, kill: Callable[[Path], None]) -> None:
    """What is there is valid, what was reported as saved is not lost, and the next save clears the debris."""
    # Forked from a fork server, which has torch but no threads yet; pytest's own process has them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed.checkpoint", "wmtp.training.checkpoint"])
    child = context.Process(target=kill, args=(tmp_path,), daemon=True)
    child.start()
    child.join(100)
    assert child.exitcode == 0
    roots = sorted(tmp_path.iterdir())
    assert len(roots) >= 10
    debris = 0
    for root in roots:
        done = (root / "done").stat().st_size
        debris += any(".tmp-" in name for name in names(root))
        found = newest_valid(root, unexpected)
        assert found is not None
        assert found.step in (done, done + 1)
        assert_loads(root, found.step)
        folders = [name for name in names(root) if name != "done" and ".tmp-" not in name]
        assert "step-00000001" in folders, "the best is gone"
        for name in folders:
            open_checkpoint(root / name)
        save(root, 10**6, tensors(5), {"step": 5}, say=unexpected, keep_last=1)
        assert [name for name in names(root) if name != "done"] == ["step-01000000"]
    assert debris > len(roots) / 3, "the kills missed the saves"
