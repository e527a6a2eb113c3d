"""Launch files and Dockerfile: nobody could run them here, but what they say has to exist and fit together."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from torch.distributed.run import get_args_parser

from wmtp.cli import app
from wmtp.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text(encoding="utf-8")))


def script(text: str) -> list[list[str]]:
    """The commands of a shell script, in words; variables stay as they are written."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and "python" not in line]


def pods() -> dict[str, Any]:
    return documents("pytorchjob.yaml")[1]["spec"]["pytorchReplicaSpecs"]


def torchrun_of(name: str) -> list[str]:
    """What follows torchrun."""
    if name == "pytorchjob.yaml":
        container = pods()["Worker"]["template"]["spec"]["containers"][0]
        words = container["command"] + container["args"]
    else:
        text = (LAUNCH / name).read_text(encoding="utf-8") if name == "slurm.sbatch" else documents(name)[0]["run"]
        (words,) = [words for words in script(text) if any(word.endswith("torchrun") for word in words)]
    start = next(i for i, word in enumerate(words) if word.endswith("torchrun"))
    return words[start + 1 :]


NAMES = ["slurm.sbatch", "pytorchjob.yaml", "skypilot.yaml"]


@pytest.mark.parametrize("name", NAMES)
def test_torchrun_knows_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [re.sub(r"\$(\w+|\{.*?\}|\(\(.*?\)\))", "1", word) for word in torchrun_of(name)]
    known = get_args_parser().parse_args(words)
    assert (known.module, known.training_script, known.training_script_args[0]) == (True, "wmtp", "train")
    assert known.max_restarts == 0, "a process that is started again alone would find the run's folder locked"
    capsys.readouterr()


@pytest.mark.parametrize("name", NAMES)
def test_wmtp_knows_its_options_and_settings(name: str) -> None:
    words = torchrun_of(name)
    words = words[words.index("train") + 1 :]
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    context = command.make_context("train", list(words))
    given = context.params
    assert given["resume"] == "auto"
    config = Path(str(given["config"]).replace("/config/", "launch/"))
    assert load(ROOT / given["recipe"], ROOT / config, given["overrides"] or []).recipe.run.name == "7b-critic"


def load(recipe: Path, config: Path, overrides: list[str]) -> Settings:
    return load_settings(recipe, config, overrides)


def test_slurm_script() -> None:
    file = LAUNCH / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", str(file)], check=False, capture_output=True).returncode == 0
    text = file.read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.M))
    assert options["signal"] == "TERM@120"
    assert "requeue" in options
    assert options["ntasks-per-node"] == "1", "one torchrun a machine"
    assert f"--nproc-per-node={options['gpus-per-node']}" in text
    settings = load(ROOT / "recipes" / "critic.7b.cluster.yaml", LAUNCH / "config.yaml", [])
    assert f"RUN={settings.recipe.run.name} " in text
    assert f"RUNS={settings.config.paths.output} " in text


@pytest.mark.parametrize(
    ("status", "restarts", "expected"),
    [("preempted", "0", True), ("preempted", "50", False), ("finished", "0", False), ("failed", "0", False)],
)
def test_slurm_script_asks_for_a_requeue_when_preempted(
    status: str, restarts: str, expected: bool, tmp_path: Path
) -> None:
    """Run as it is, with stand-ins for Slurm's commands and torchrun."""
    for name, does in {
        "scontrol": 'if [ "$1" = requeue ]; then echo "$2" > requeued; else echo first; echo second; fi',
        "srun": 'shift; exec "$@"',
        ".venv/bin/torchrun": 'echo "$@" > asked; exit 1',
        ".venv/bin/python": 'exec python3 "$@"',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{does}\n")
        path.chmod(0o755)
    (tmp_path / "runs" / "7b-critic").mkdir(parents=True)
    (tmp_path / "runs" / "7b-critic" / "status.json").write_text(f'{{"state": "{status}"}}')
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "12345",
                   "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_RESTART_COUNT": restarts}  # fmt: skip
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sbatch")], env=environment, capture_output=True, check=False)
    assert done.returncode == 1, "torchrun's own code"
    assert (tmp_path / "requeued").exists() == expected
    asked = (tmp_path / "asked").read_text()
    assert "--rdzv-endpoint=first:22345" in asked
    assert f"--rdzv-id=12345-{restarts}" in asked


def test_kubernetes_job() -> None:
    claim, job = documents("pytorchjob.yaml")
    assert (job["apiVersion"], job["kind"], claim["kind"]) == ("kubeflow.org/v1", "PyTorchJob", "PersistentVolumeClaim")
    assert "elasticPolicy" not in job["spec"]
    assert set(pods()) == {"Master", "Worker"}
    for pod in pods().values():
        spec = pod["template"]["spec"]
        (container,) = spec["containers"]
        assert container["name"] == "pytorch"
        assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert spec["terminationGracePeriodSeconds"] > 30, "torchrun gives its processes 30 seconds"


def test_skypilot_task() -> None:
    (task,) = documents("skypilot.yaml")
    known = {"name", "resources", "num_nodes", "workdir", "envs", "setup", "run", "file_mounts", "secrets", "config"}
    assert set(task) <= known
    assert subprocess.run(["bash", "-n", "-c", task["run"]], check=False, capture_output=True).returncode == 0
    assert f"{task['setup'].split()[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_dockerfile_copies_what_is_there_and_drops_root() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    (base,) = [rest for step, rest in steps if step == "FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-[a-z-]+(@sha256:[0-9a-f]{64})?", base), "pinned"
    copied = [word for step, rest in steps if step == "COPY" for word in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == set(copied)
    assert "-r requirements.lock" in text
    users = [rest for step, rest in steps if step == "USER"]
    assert users, "not root"
    assert users[-1] not in ("root", "0")
    # What the wheel is built from has to be there when it is built.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["readme"] in copied


def test_page_names_all_files() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    for file in [*LAUNCH.iterdir(), ROOT / "Dockerfile"]:
        assert f"({Path('..') / file.relative_to(ROOT)})" in page
