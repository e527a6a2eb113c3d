"""The recipe of the specification loads verbatim and holds what it says; defaults are those of SPEC 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from wmtp.settings import Config, Recipe, json_schema, load_config, load_recipe, load_settings

# A copy of the specification's recipe: this text is the contract.
VERBATIM = """\
run:
  name: "m3_test_critic_wmtp"
  tags: ["test", "m3", "critic", "wmtp"]

# Pretraining (top level)
pretrain:
  enabled: true
  num_epochs: 3
  max_steps: 30
  lr: 1e-4
  save_value_head: true

  early_stopping:
    enabled: true
    mode: "any"
    patience: 10
    min_delta: 1e-4
    monitor: "value_loss"
    grad_norm_threshold: 50.0
    grad_norm_window_size: 10
    grad_norm_threshold_ratio: 0.7
    variance_min: 0.1
    variance_max: 5.0

train:
  algo: "critic-wmtp"
  full_finetune: true
  max_steps: 2

  early_stopping:
    enabled: false
    patience: 100
    min_delta: 1e-5
    monitor: "wmtp_loss"

optim:
  optimizer: "adamw"
  lr: 5.0e-5
  weight_decay: 0.01
  betas: [0.9, 0.999]
  grad_clip: 1.0
  scheduler: "constant"
  warmup_ratio: 0.0

data:
  train:
    sources: ["mbpp"]
    max_length: 128
    batch_size: 1
    pack_sequences: false
  eval:
    sources: ["mbpp"]
    max_length: 128
    batch_size: 1
    pack_sequences: false

loss:
  weight_norm: "mean1.0_clip"
  lambda: 0.3
  weight_temperature: 0.7
  epsilon: 0.05
  max_weight: 3.0

critic:
  target: "rm_sequence"
  token_spread: "gae"
  delta_mode: "td"
  normalize: "zscore"
  discount_lambda: 0.95
  gamma: 0.99
  gae_lambda: 0.95
  auxiliary_loss_coef: 0.1
  value_lr: 5e-5
  use_pseudo_rewards: true

eval:
  protocol: "meta-mtp"
  sampling:
    temperature: 0.7
    top_p: 0.9
    n: 1
  metrics:
    - "mbpp_exact"
"""

LEAST = "run: {name: r}\ntrain: {algo: baseline-mtp}\ndata: {train: {sources: [mbpp]}}\n"

# What SPEC 2 and 3.1 give as defaults.
STOPPING = {
    "enabled": False, "patience": 100, "min_delta": 1e-4, "monitor": "loss", "mode": "any",
    "grad_norm_threshold": None, "grad_norm_window_size": 10, "grad_norm_threshold_ratio": 0.7,
    "variance_min": None, "variance_max": None, "min_steps": 0, "variance_grace_steps": 20, "max_nonfinite": 3,
    "restore_best": False, "shadow": False, "rule": "plain", "shadow_rules": {},
}  # fmt: skip
STAGE1_STOPPING = STOPPING | {"variance_grace_steps": None}
EVAL = {"before": False, "limit": None, "max_new_tokens": None, "batch_size": 32, "speculative": False}
PART = {"sources": ["mbpp"], "max_length": 2048, "batch_size": 8, "pack_sequences": True, "mask_prompt": True}
DEFAULTS = {
    "run": {"name": "r", "tags": []},
    "model": {
        "horizon": 4, "head": "transformer", "head_warmup_steps": 0, "detach_heads": False,
        "head_coefficients": None, "native_mtp": "refuse",
    },
    "pretrain": None,
    "train": {
        "algo": "baseline-mtp", "full_finetune": True, "num_epochs": 3, "max_steps": None, "eval_interval": 500,
        "save_interval": 1000, "early_stopping": STOPPING,
    },
    "optim": {
        "optimizer": "adamw", "lr": 1.2e-5, "heads_lr": None, "weight_decay": 0.1, "betas": [0.9, 0.95],
        "grad_clip": 1.0, "scheduler": "cosine", "warmup_ratio": 0.03,
    },
    "data": {"train": PART, "eval": PART},
    "loss": {
        "weight_norm": "mean1.0_clip", "lambda": 0.3, "weight_temperature": 0.7, "epsilon": 0.05, "max_weight": 3.0,
        "control": "none",
    },
    "critic": None,
    "rho1": None,
    "eval": {
        "protocol": "meta-mtp",
        "sampling": {"temperature": 0.2, "temperature_grid": [], "top_p": 0.95, "n": 1},
        "metrics": [],
        **EVAL,
    },
}  # fmt: skip
CONFIG_DEFAULTS = {
    "project": "wmtp", "seed": 42, "log_interval": 10,
    "paths": {
        "models": {"base": "builtin:tiny", "rm": None, "ref": None, "value_head": None},
        "datasets": {"mbpp": "builtin:tasks", "contest": None, "humaneval": None, "custom": None},
        "checkpoints": {
            "base_path": None, "save_interval": None, "keep_last": 3, "background": True, "save_final": True
        },
        "output": "runs", "cache": None,
    },
    "mlflow": {"enabled": True, "experiment": None, "tracking_uri": None, "registry_uri": None},
    "devices": {"compute_backend": "auto", "mixed_precision": "auto", "num_proc": 1, "micro_batch_size": None,
        "activation_checkpointing": False,
        "distributed": {"backend": "auto", "start_timeout": 1800.0, "timeout": 120.0, "save_wait": 600.0},
        "fsdp": {
            "sharding": "full", "shard_size": None, "param_dtype": "auto", "cpu_offload": False,
            "reshard_after_forward": True,
        },
    },
}  # fmt: skip


def load(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def plain(settings: Recipe | Config) -> dict[str, object]:
    return settings.model_dump(mode="json", by_alias=True)


def test_the_copy_is_the_specifications_recipe():
    original = Path(__file__).parents[4] / "shared/spec/recipe.critic_wmtp.yaml"
    if not original.exists():
        pytest.skip("the specification is not beside this checkout")
    assert original.read_text().strip() == VERBATIM.strip()


def test_verbatim_recipe(tmp_path):
    got = plain(load(tmp_path, VERBATIM))
    part = {"sources": ["mbpp"], "max_length": 128, "batch_size": 1, "pack_sequences": False, "mask_prompt": True}
    assert got == DEFAULTS | {
        "run": {"name": "m3_test_critic_wmtp", "tags": ["test", "m3", "critic", "wmtp"]},
        "pretrain": {
            "enabled": True, "num_epochs": 3, "max_steps": 30, "lr": 0.0001, "batch_size": None,
            "save_value_head": True,
            "early_stopping": STAGE1_STOPPING | {
                "enabled": True, "patience": 10, "min_delta": 0.0001, "monitor": "value_loss",
                "grad_norm_threshold": 50.0, "variance_min": 0.1, "variance_max": 5.0,
            },
        },
        "train": DEFAULTS["train"] | {
            "algo": "critic-wmtp", "max_steps": 2,
            "early_stopping": STOPPING | {"min_delta": 0.00001, "monitor": "wmtp_loss"},
        },
        "optim": {
            "optimizer": "adamw", "lr": 0.00005, "heads_lr": None, "weight_decay": 0.01, "betas": [0.9, 0.999],
            "grad_clip": 1.0, "scheduler": "constant", "warmup_ratio": 0.0,
        },
        "data": {"train": part, "eval": part},
        "critic": {
            "target": "rm_sequence", "token_spread": "gae", "delta_mode": "td", "normalize": "zscore",
            "discount_lambda": 0.95, "gamma": 0.99, "gae_lambda": 0.95, "auxiliary_loss_coef": 0.1,
            "value_lr": 0.00005, "use_pseudo_rewards": True, "on_useless": "warn",
        },
        "eval": {
            "protocol": "meta-mtp", "sampling": {"temperature": 0.7, "temperature_grid": [], "top_p": 0.9, "n": 1},
            "metrics": ["mbpp_exact"], **EVAL,
        },
    }  # fmt: skip


def test_verbatim_recipe_runs_with_the_default_config(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(VERBATIM)
    assert plain(load_settings(path).config) == CONFIG_DEFAULTS


def test_everything_else_takes_its_default(tmp_path):
    recipe = load(tmp_path, LEAST)
    assert plain(recipe) == DEFAULTS
    assert recipe.loss.lambda_ == 0.3
    assert plain(load_config()) == CONFIG_DEFAULTS


def test_optional_sections_left_empty_take_their_defaults(tmp_path):
    recipe = load(tmp_path, LEAST.replace("baseline", "critic").replace("-mtp", "-wmtp") + "critic: {}\npretrain: {}\n")
    assert plain(recipe)["critic"] == {
        "target": "rm_sequence", "token_spread": "gae", "delta_mode": "td", "normalize": "zscore",
        "discount_lambda": 0.95, "gamma": 0.99, "gae_lambda": 0.95, "auxiliary_loss_coef": 0.1, "value_lr": 5e-5,
        "use_pseudo_rewards": True, "on_useless": "warn",
    }  # fmt: skip
    assert plain(recipe)["pretrain"] == {
        "enabled": True, "num_epochs": 3, "max_steps": 2000, "lr": 1e-4, "batch_size": None,
        "save_value_head": True, "early_stopping": STAGE1_STOPPING,
    }  # fmt: skip
    assert plain(load(tmp_path, LEAST + "rho1: {}"))["rho1"] == {
        "selection_mode": "weighted", "skip_threshold_percentile": 0.3, "min_ce_diff": 0.01, "score_from": "head1",
        "reference": "cached",
    }  # fmt: skip


def test_evaluation_data_left_out_is_that_of_training(tmp_path):
    recipe = load(tmp_path, LEAST.replace("[mbpp]", "[mbpp], max_length: 64, batch_size: 2"))
    assert recipe.data.eval == recipe.data.train
    assert recipe.data.eval.max_length == 64


def test_aliases(tmp_path):
    recipe = load(tmp_path, LEAST + "loss: {temperature: 0.5}\ncritic: {value_coef: 0.25}\n")
    assert recipe.loss.weight_temperature == 0.5
    assert recipe.critic is not None
    assert recipe.critic.auxiliary_loss_coef == 0.25


def test_settings_never_change(tmp_path):
    recipe = load(tmp_path, LEAST)
    with pytest.raises(ValidationError):
        recipe.loss.epsilon = 0.5  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(recipe.data.train.sources, tuple)


def test_config_values(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "seed: 7\npaths:\n  models: {base: s3://bucket/m}\n  datasets:\n    mbpp: {train: a.jsonl, test: b.jsonl}\n"
        "    custom: data/*.py\ndevices: {mixed_precision: bf16}\n"
    )
    config = load_config(path)
    assert config.seed == 7
    assert config.paths.models.base == "s3://bucket/m"
    assert plain(config)["paths"]["datasets"] == {
        "mbpp": {"train": "a.jsonl", "validation": None, "test": "b.jsonl"},
        "contest": None,
        "humaneval": None,
        "custom": "data/*.py",
    }
    assert config.devices.mixed_precision == "bf16"


def test_the_configs_save_interval_wins(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(LEAST)
    assert load_settings(path).save_interval == 1000
    assert load_settings(path, None, ["train.save_interval=70"]).save_interval == 70
    both = ["train.save_interval=70", "paths.checkpoints.save_interval=5"]
    assert load_settings(path, None, both).save_interval == 5


def test_the_files_share_no_top_level_key():
    assert not set(Recipe.model_fields) & set(Config.model_fields)


@pytest.mark.parametrize("file", ["recipe", "config"])
def test_schema_is_closed_and_explains_every_key(file):
    schema = json.loads(json.dumps(json_schema()[file]))
    for name, section in {"": schema, **schema["$defs"]}.items():
        assert section["additionalProperties"] is False, name
        for key, field in section["properties"].items():
            assert len(field.get("description", "")) > 5, (name, key)
            assert "\n" not in field["description"], (name, key)


def test_schema_says_what_the_loader_accepts():
    loss = json_schema()["recipe"]["$defs"]["Loss"]["properties"]
    assert loss["lambda"]["exclusiveMinimum"] == 0
    assert loss["lambda"]["maximum"] == 1
    assert "temperature" in loss
    assert json_schema()["recipe"]["required"] == ["run", "train", "data"]


def test_import_is_light():
    code = "import sys, wmtp.settings; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "wmtp.settings.recipe" in modules
    assert not {"torch", "transformers", "datasets", "mlflow", "numpy"} & set(modules)
