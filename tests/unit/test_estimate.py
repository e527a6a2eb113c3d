"""The estimate of `wmtp check`: against real models, real updates, torch's own counter, and arithmetic by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MixtralConfig

from wmtp import cli
from wmtp.errors import ModelError, SettingsError
from wmtp.estimate import Machine, estimate, estimate_model, flops_per_token, lines, machine_of
from wmtp.model import MTPModel, load_model, model_skeleton, save_model
from wmtp.model.trunk import CausalTrunk
from wmtp.objectives import WeightedMTP
from wmtp.settings import Config, Recipe, Settings
from wmtp.training import footprint as traced
from wmtp.training.footprint import Live, Pass, footprint
from wmtp.training.memory import update_memory
from wmtp.training.sharding import Sharding
from wmtp.types import Batch
from wmtp.weighting import Uniform

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/estimate.py."""
    spec = importlib.util.spec_from_file_location("estimate_benchmark", ROOT / "benchmarks" / "estimate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def settings_of(recipe: dict[str, Any] | None = None, devices: dict[str, Any] | None = None, **paths: Any) -> Settings:
    base: dict[str, Any] = {
        "run": {"name": "x"},
        "train": {"algo": "baseline-mtp"},
        "data": {"train": {"sources": ["mbpp"], "max_length": 32, "batch_size": 4}},
    }
    return Settings(
        Recipe.model_validate(base | (recipe or {})),
        Config.model_validate({"devices": {"compute_backend": "cpu"} | (devices or {}), "paths": paths}),
    )


def empty(make_lm: Callable[..., Any], horizon: int = 3, kind: str = "llama", **settings: Any) -> MTPModel:
    return MTPModel(CausalTrunk(make_lm(kind, **settings), kind), horizon).to("meta")


@pytest.mark.parametrize(("horizon", "head"), [(1, "transformer"), (4, "transformer"), (3, "residual")])
def test_parameters_are_those_of_the_real_model(horizon: int, head: Any) -> None:
    found: Any = estimate(settings_of({"model": {"horizon": horizon, "head": head}}), Machine("cpu", 1))["parameters"]
    model = load_model("builtin:tiny", horizon=horizon, head=head)
    assert found["trunk"] == sum(p.numel() for p in model.trunk.parameters())
    assert found["heads"] == sum(p.numel() for p in model.heads.parameters())
    assert found["all"] == found["learnt"] == sum(p.numel() for p in model.parameters())


def test_a_folder_is_counted_by_its_own_config(make_lm: Callable[..., Any], tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, save_directory: str) -> None: ...

    model = MTPModel(CausalTrunk(make_lm("qwen2"), "x"), 2)
    save_model(model, Tokenizer(), tmp_path / "m")
    settings = settings_of(
        {"model": {"horizon": 2}, "train": {"algo": "baseline-mtp", "full_finetune": False}},
        models={"base": str(tmp_path / "m")},
    )
    found: Any = estimate(settings, Machine("cpu", 1))
    assert found["parameters"]["all"] == sum(p.numel() for p in model.parameters())
    assert found["parameters"]["learnt"] == sum(p.numel() for p in model.heads.parameters())
    assert found["disk"]["checkpoint"] == 12 * found["parameters"]["learnt"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt_neox"])
def test_layers_between_first_and_last_are_added_right(
    kind: str, checkpointing: bool, make_lm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two traced layers and arithmetic say what a trace of all seven says."""
    model = empty(make_lm, kind=kind, num_hidden_layers=7)
    run = Pass(4, 32, torch.bfloat16, "cpu", checkpointing)

    def highest(gradients: float) -> float:
        found = footprint(model, run, torch.float32)
        return max(
            at.activations + at.loss + at.casts + gradients * (at.layer_gradients + at.root_gradients) for at in found
        )

    short = [highest(share) for share in (0.0, 0.1, 1.0, 10.0)]
    monkeypatch.setattr(traced, "TRACED_LAYERS", 99)
    # GPT-NeoX's first layer keeps some bytes less than the next.
    assert short == pytest.approx([highest(share) for share in (0.0, 0.1, 1.0, 10.0)], rel=2e-3)


def test_what_remains_at_the_end_is_the_gradients(make_lm: Callable[..., Any]) -> None:
    model = empty(make_lm, num_hidden_layers=5)
    last = footprint(model, Pass(2, 16, torch.float32, "cpu", False), torch.float32)[-1]
    of_layers = sum(p.numel() for layer in model.layers() for p in layer.parameters())
    assert last.layer_gradients == 4 * of_layers
    assert last.layer_gradients + last.root_gradients == 4 * sum(p.numel() for p in model.parameters())


def test_a_frozen_trunk_keeps_nothing_of_its_lower_layers(make_lm: Callable[..., Any]) -> None:
    model = empty(make_lm, num_hidden_layers=6)
    model.train_trunk(False)
    run = Pass(4, 32, torch.float32, "cpu", False)
    deep = footprint(model, run, torch.float32)
    shallow = empty(make_lm, num_hidden_layers=2)
    shallow.train_trunk(False)
    assert deep == footprint(shallow, run, torch.float32)
    assert deep[-1].root_gradients == 0


def test_a_model_that_depends_on_values_is_no_crash() -> None:
    config = MixtralConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                           num_key_value_heads=2, vocab_size=50, num_local_experts=2)  # fmt: skip
    with torch.device("meta"):
        model = MTPModel(CausalTrunk(AutoModelForCausalLM.from_config(config), "x"), 1)
    with pytest.raises(ModelError, match="MixtralForCausalLM holds can't be told"):
        footprint(model, Pass(1, 8, torch.float32, "cpu", False), torch.float32)


def test_pieces_and_what_is_gathered(make_lm: Callable[..., Any]) -> None:
    """By hand: fp32 weights and AdamW's moments over 4 processes; bf16 copies of the root and of two layers."""
    model = empty(make_lm, horizon=2, num_hidden_layers=4)
    layer = sum(p.numel() for p in model.heads[0].parameters())
    whole = sum(p.numel() for p in model.parameters())
    run = Pass(1, 8, torch.bfloat16, "cuda", True)

    def parts(**how: Any) -> dict[str, float]:
        sharding = Sharding(**{"kind": "full", "param_dtype": torch.bfloat16} | how)
        return update_memory(model, run, accumulates=True, slots=2, processes=4, sharding=sharding)

    full, pairs, copies = parts(), parts(kind="hybrid", shard_size=2), parts(kind="none")
    for found, pieces in ((full, 4), (pairs, 2), (copies, 1)):
        assert found["weights"] == found["gradients"] == found["optimizer"] / 2 == 4 * whole / pieces
    root = whole - 5 * layer
    least = 2 * (root + 2 * layer)
    assert least <= full["gathered"] <= least + 6 * root + 6 * layer
    assert parts(reshard_after_forward=False)["gathered"] == full["gathered"] + 2 * 3 * layer
    offloaded = parts(cpu_offload=True)
    assert (offloaded["weights"], offloaded["offloaded"]) == (0, 16 * whole / 4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_those_that_torch_counts(checkpointing: bool, make_lm: Callable[..., Any]) -> None:
    """Eager attention, whose products torch's counter sees; the last token of a row has nothing to predict."""
    model = MTPModel(CausalTrunk(make_lm("llama-eager", num_hidden_layers=3), "x"), 1)
    rows, length = 2, 48
    tokens = torch.randint(2, 97, (rows, length))
    batch = Batch(tokens, tokens, torch.arange(rows)[:, None].expand(rows, length),
                  torch.arange(length).expand(rows, length))  # fmt: skip
    if checkpointing:
        traced.recompute(model)
    with FlopCounterMode(display=False) as counter:
        WeightedMTP(Uniform(), 1)(model, batch).loss.backward()
    by_us = flops_per_token(model, length, checkpointing=checkpointing) * rows * length
    of_no_target = 4 * 2 * model.trunk.unembedding.weight.numel() * rows
    ratio = (by_us - of_no_target) / counter.get_total_flops()
    assert ratio == pytest.approx(1.0, rel=0.002) if not checkpointing else 1.0 <= ratio <= 1.05


def test_memory_is_that_of_real_updates(benchmark: ModuleType) -> None:
    """The largest part of it here is activations; the process's allocator adds a few MB."""
    case = benchmark.Case("5M", rows=8, length=128)
    assert benchmark.estimated(case)["memory"]["total"] == pytest.approx(benchmark.measured(case), rel=0.1)


def test_page_has_the_table_that_the_command_prints(benchmark: ModuleType) -> None:
    table = benchmark.table()
    assert "| 7B | 7.3" in table
    assert table in (ROOT / "docs" / "cluster.md").read_text(), "run benchmarks/estimate.py --table"


def test_more_of_anything_needs_more(make_lm: Callable[..., Any]) -> None:
    def total(recipe: dict[str, Any] | None = None, devices: dict[str, Any] | None = None, **machine: Any) -> float:
        settings = settings_of(recipe, devices)
        horizon = settings.recipe.model.horizon
        found: Any = estimate_model(
            empty(make_lm, horizon), settings, Machine(**{"device": "cpu", "gpus": 1} | machine)
        )
        return found["memory"]["total"]

    plain = total()
    assert total({"model": {"horizon": 2}}) < plain
    assert total({"optim": {"optimizer": "sgd"}}) < plain
    assert total(devices={"micro_batch_size": 1}) < plain
    assert total(devices={"activation_checkpointing": True}) < plain
    assert total(gpus=4) < plain


def test_live_reference_and_stage_1_are_told() -> None:
    rho1 = {"train": {"algo": "rho1-wmtp"}, "rho1": {"reference": "live"}}
    models = {"ref": "builtin:tiny"}
    live: Any = estimate(settings_of(rho1, models=models), Machine("cpu", 1))
    cached: Any = estimate(settings_of(rho1 | {"rho1": {}}, models=models), Machine("cpu", 1))
    plain = sum(p.numel() for p in model_skeleton("builtin:tiny", horizon=1).parameters())
    assert (live["memory"]["reference"], cached["memory"]["reference"]) == (4 * plain, 0)
    critic: Any = estimate(
        settings_of({"train": {"algo": "critic-wmtp"}, "critic": {}, "pretrain": {}}), Machine("cpu", 1)
    )
    assert critic["disk"]["states_per_1000_tokens"] == 1000 * 2 * 256
    assert any("stage 1's states: 0.51 MB" in line for line in lines(critic))


def test_fits_and_time_by_hand() -> None:
    settings = settings_of()
    found: Any = estimate(settings, Machine("cpu", 1, memory=1e12, tflops=2.0))
    assert found["step"]["seconds"] == pytest.approx(found["flops_per_token"] * 4 * 32 / 2e12)
    total = found["memory"]["total"]
    said = [estimate(settings, Machine("cpu", 1, memory=total * share))["fits"] for share in (1.2, 1.05, 0.95)]
    assert (found["fits"], said) == ("yes", ["yes", "tight", "no"])


def test_options_describe_a_machine() -> None:
    auto = settings_of(devices={"compute_backend": "auto", "num_proc": 2})
    assert machine_of(auto, None, "A100", None, None) == Machine("cuda", 2, 80e9, pytest.approx(312 * 0.4))
    assert machine_of(auto, 8, "A100", "40GiB", 100.0) == Machine("cuda", 8, 40 * 2**30, 100.0, told=True)
    assert machine_of(settings_of(), 4, None, "24", None) == Machine("cpu", 4, 24e9)
    for wrong in ({"gpu": "A1000"}, {"memory": "lots"}, {"memory": "0GB"}, {"memory": "1.2.3GB"}):
        with pytest.raises(SettingsError, match=next(iter(wrong.values()))):
            machine_of(auto, None, wrong.get("gpu"), wrong.get("memory"), None)


def test_check_prints_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = str(ROOT / "recipes" / "baseline.tiny.yaml")

    def check(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["wmtp", "check", "-r", recipe, *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out

    found = json.loads(check("--json", "--gpus", "4", "--gpu", "H100"))
    assert found["estimate"]["gpus"] == 4
    assert found["estimate"]["fits"] == "yes"
    told = check("--gpu-memory", "80GB")
    assert "# estimate\n# parameters: " in told
    assert "fits in 80 GB: yes" in told
    assert json.loads(check("--json", "--no-estimate"))["estimate"] is None
    assert "estimate" not in check("--no-estimate")
    absent = check("--set", "paths.models.base=someone/a-model-not-here")
    assert "no estimate: someone/a-model-not-here is not on this machine" in absent
    assert "missing" in json.loads(check("--json", "--set", "paths.models.base=not/here/at-all"))["estimate"]


def test_live_adds_up() -> None:
    assert Live(1, 2, 3, 4, 5).plus(Live(10, 0, 0, 1, 0), 2) == Live(21, 2, 3, 6, 5)
