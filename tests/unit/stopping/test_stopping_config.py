"""Settings of early stopping: defaults, bounds, messages, and agreement with pydantic on what is valid."""

import json
import random
from dataclasses import fields

import pytest
from pydantic import TypeAdapter, ValidationError

from wmtp.errors import SettingsError
from wmtp.stopping import EarlyStoppingConfig, EarlyStoppingConfigError

ADAPTER = TypeAdapter(EarlyStoppingConfig)


def test_defaults_are_those_of_the_specification():
    config = EarlyStoppingConfig()
    assert {f.name: getattr(config, f.name) for f in fields(config)} == {
        "enabled": False,
        "patience": 100,
        "min_delta": 1e-4,
        "monitor": "loss",
        "mode": "any",
        "grad_norm_threshold": None,
        "grad_norm_window_size": 10,
        "grad_norm_threshold_ratio": 0.7,
        "variance_min": None,
        "variance_max": None,
        "min_steps": 0,
        "variance_grace_steps": 20,
        "max_nonfinite": 3,
        "restore_best": False,
        "shadow": False,
        "rule": "plain",
        "shadow_rules": {},
    }


def test_all_mistakes_at_once_with_place_value_and_cure():
    with pytest.raises(SettingsError) as caught:
        EarlyStoppingConfig.from_mapping(
            {"patence": 3, "patience": 0, "min_delta": "1e-4", "mode": "both", "monitor": "", "enabled": 1},
            "train.early_stopping",
        )
    lines = str(caught.value).split("\n")
    assert len(lines) == 6
    assert all(line.startswith("train.early_stopping.") for line in lines)
    for words in (
        ("patence", "did you mean patience?"),
        ("patience", "0", "at least 1"),
        ("min_delta", "'1e-4'", "1.0e-4"),
        ("mode", "'both'", "any, all, loss_only"),
        ("monitor", "empty"),
        ("enabled", "1", "true or false"),
    ):
        assert any(all(word in line for word in words) for line in lines), words


def test_direct_construction_is_checked_too():
    with pytest.raises(EarlyStoppingConfigError, match=r"variance_min: 5\.0 is above variance_max"):
        EarlyStoppingConfig(variance_min=5.0, variance_max=0.1)
    with pytest.raises(SettingsError, match="not a mapping"):
        EarlyStoppingConfig.from_mapping([("patience", 3)])  # pyright: ignore[reportArgumentType]


VALUES = [True, False, None, "any", "all", "loss", "", "x", "1e-4", [], {}, *(-1, 0, 1, 2, 7, 100)]
VALUES += [0.0, -0.5, 1e-4, 0.7, 1.0, 1.5, 3.0, 50.0, float("nan"), float("inf"), float("-inf")]


def test_pydantic_and_plain_code_agree_on_what_is_valid():
    rng = random.Random(0)
    names = [f.name for f in fields(EarlyStoppingConfig)]
    verdicts = []
    for _ in range(3000):
        mapping = {name: rng.choice(VALUES) for name in rng.sample([*names, "patienc"], rng.choice([0, 1, 1]))}
        try:
            theirs = ADAPTER.validate_json(json.dumps(mapping), strict=True)
        except ValidationError:
            theirs = None
        try:
            ours = EarlyStoppingConfig.from_mapping(mapping)
        except EarlyStoppingConfigError:
            ours = None
        assert ours == theirs, mapping
        verdicts.append(ours is not None)
    assert 800 < sum(verdicts) < 2200
