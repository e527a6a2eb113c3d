"""Recipes load, pages are up to date, and the package's own function trains."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

import wmtp
from wmtp.settings import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = [*sorted((ROOT / "recipes").glob("*.yaml")), ROOT / "src" / "wmtp" / "demo.yaml"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_shipped_recipe_is_valid(recipe: Path) -> None:
    assert load_recipe(recipe).train.algo
    assert recipe.read_text(encoding="utf-8").startswith("# "), "says what it is for, on what, and what to expect"


def test_settings_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "make_settings_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run benchmarks/make_settings_page.py"


@pytest.mark.parametrize(("page", "count"), [("stopping-features", 34), ("faults", 34)])
def test_each_row_of_a_table_has_its_test(page: str, count: int) -> None:
    rows = re.findall(r"^\| (\d+) \|.* (tests/\S+\.py)::(\w+) \|$", (ROOT / "docs" / f"{page}.md").read_text(), re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, count + 1))
    missing = [name for _, file, name in rows if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert not missing


def test_train_as_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "", "response": f"x = {n}\ny = x + {n}\n"} for n in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        "run: {name: f}\nmodel: {horizon: 1}\ntrain: {algo: baseline-mtp, max_steps: 2}\n"
        "data: {train: {sources: [custom], max_length: 32, batch_size: 2}}\n"
    )
    monkeypatch.setenv("WMTP_CACHE", str(tmp_path / "cache"))
    where = {"train": str(tmp_path / "data.jsonl"), "validation": str(tmp_path / "data.jsonl")}
    overrides = [
        f"paths.output={json.dumps(str(tmp_path))}",
        f"paths.datasets.custom={json.dumps(where)}",
        "mlflow.enabled=false",
    ]
    summary = wmtp.train(tmp_path / "recipe.yaml", overrides=overrides)
    assert summary["train"]["total_steps"] == 2
    assert not (tmp_path / "f" / "model" / "mtp_heads.safetensors").exists()


def test_version_is_the_package_s() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{wmtp.__version__}"' in text
    assert "wmtp" in sys.modules
