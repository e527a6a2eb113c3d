"""`wmtp export` as a person meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.conftest import Bench
from tests.unit.model.meta_reference import PARAMS, WIDTH, head_logits, make_weights, write_folder
from wmtp.data import load_tokenizer
from wmtp.model import load_model
from wmtp.model.builtin import tokenizer_file

WIDE = PARAMS | {"vocab_size": 1024}
SHORT = ("--no-eval", "--set", "train.max_steps=2", "--set", "train.save_interval=1")


@pytest.fixture
def meta(bench: Bench) -> Path:
    """A bf16 model in Meta's form, its tokenizer in the folder above."""
    weights = {key: value.bfloat16() for key, value in make_weights(WIDE, WIDTH).items()}
    load_tokenizer(str(tokenizer_file())).save_pretrained(str(bench.folder / "meta"))
    return write_folder(bench.folder / "meta" / "7B", WIDE, weights)


def train_on(bench: Bench, meta: Path, *words: str) -> None:
    base = ("--set", f"paths.models.base={meta}", "--set", "model={horizon: 4, head: transformer}")
    result = bench.train(*base, *SHORT, *words)
    assert result.code == 0, result.err


def test_a_trained_meta_model_goes_back_to_metas_form(bench: Bench, meta: Path) -> None:
    train_on(bench, meta)
    result = bench.run("export", "runs/small", "out", "--to", "meta", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"path": "out", "form": "meta"}
    assert json.loads(Path("out/params.json").read_text()) == WIDE
    found = torch.load("out/consolidated.pth", weights_only=True)
    before = torch.load(meta / "consolidated.pth", weights_only=True)
    assert {key: (value.shape, value.dtype) for key, value in found.items()} == {
        key: (value.shape, value.dtype) for key, value in before.items()
    }
    assert not any(torch.equal(found[key], before[key]) for key in before if "attention.w" in key)  # all have learnt
    # What was trained, in bf16, is what the form's own computation gives for the file.
    model = load_model("runs/small/model", horizon=None)
    tokens = torch.randint(0, 1024, (1, 9))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
        trunk = model.trunk(tokens, torch.arange(9)[None])
        logits = torch.stack([model.trunk.unembedding(h) for h in model.run_heads(trunk, 4)], dim=-2)
    torch.testing.assert_close(logits.double(), head_logits(WIDE, found, tokens), atol=1e-5, rtol=1e-5)
    # And the exported folder is a model to train on, tokenizer and all.
    train_on(bench, Path("out"), "--run-name", "again")


def test_a_plain_folder_for_other_tools(bench: Bench, meta: Path) -> None:
    train_on(bench, meta)
    result = bench.run("export", "--to", "hf", "runs/small", "out")
    assert (result.code, result.out.strip()) == (0, "out"), result.err
    names = {file.name for file in Path("out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {name for name in names if "wmtp" in name or "mtp" in name}
    assert "origin" not in Path("out/config.json").read_text()
    lm, tokenizer = AutoModelForCausalLM.from_pretrained("out"), AutoTokenizer.from_pretrained("out")
    expected = load_model("runs/small/model", horizon=None).trunk.lm
    ids = torch.tensor([tokenizer("def f(x):\n    return x")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(lm(ids).logits, expected(ids).logits)
    assert tokenizer("a b")["input_ids"] == load_tokenizer(str(tokenizer_file()))("a b")["input_ids"]


def test_a_model_of_any_origin(bench: Bench, meta: Path) -> None:
    assert bench.run("export", str(meta), "hf", "--to", "hf").code == 0
    trunk = AutoModelForCausalLM.from_pretrained("hf")
    assert trunk.config.num_hidden_layers == 4
    assert bench.run("export", "builtin:tiny", "tiny", "--to", "meta").code == 0
    assert load_model("tiny", horizon=None).horizon == 1
    assert bench.run("export", str(meta), "same", "--to", "meta").code == 0
    for name, value in torch.load(meta / "consolidated.pth", weights_only=True).items():
        found = torch.load("same/consolidated.pth", weights_only=True)[name]
        assert found.dtype == value.dtype
        assert torch.equal(found, value)


def test_refusals(bench: Bench, meta: Path) -> None:
    def refused(*words: str) -> str:
        before = sorted(bench.folder.iterdir())
        result = bench.run("export", *words)
        assert result.code == 2
        assert "Traceback" not in result.err
        assert sorted(bench.folder.iterdir()) == before
        return result.err

    for form in ("hf", "meta"):
        assert "data: is there already; name a new folder" in refused(str(meta), "data", "--to", form)
    assert (bench.folder / "data" / "train.jsonl").exists()
    assert "nowhere: no such file or folder" in refused("nowhere", "out", "--to", "hf")
    assert "--to" in refused(str(meta), "out", "--to", "onnx")
    result = bench.train(*SHORT)  # the recipe's heads are residual
    assert result.code == 0, result.err
    assert "heads of kind residual" in refused("runs/small", "out", "--to", "meta")
    (bench.folder / "runs" / "small" / "model").rename(bench.folder / "gone")
    assert "runs/small: the run has no finished model" in refused("runs/small", "out", "--to", "hf")


@pytest.mark.parametrize(
    ("form", "number"), [("meta", signal.SIGTERM), ("hf", signal.SIGINT), ("meta", signal.SIGKILL)]
)
def test_killed_half_way(form: str, number: signal.Signals, bench: Bench, meta: Path) -> None:
    """The signal comes when the weights have been written and the folder is not whole yet."""
    code = f"""
import os, signal, sys
import torch
from transformers import PreTrainedModel
from wmtp import cli
def then_killed(write):
    def wrapped(*args, **kwargs):
        write(*args, **kwargs)
        os.kill(os.getpid(), {int(number)})
    return wrapped
torch.save = then_killed(torch.save)
PreTrainedModel.save_pretrained = then_killed(PreTrainedModel.save_pretrained)
sys.argv = ["wmtp", "export", {str(meta)!r}, "out", "--to", {form!r}]
cli.main()
"""
    before = set(bench.folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=bench.folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True
    )
    assert done.returncode not in (0, 1), done.stderr
    left = {path.name for path in set(bench.folder.iterdir()) - before}
    assert not left or (number == signal.SIGKILL and len(left) == 1 and next(iter(left)).startswith("out.tmp-"))
    assert bench.run("export", str(meta), "out", "--to", form).code == 0
