"""A thousand mutated recipes: each is either valid, and comes back from its dump, or refused with a clean message.

Mutations of the data (keys deleted, renamed; values of wrong types, out of range, nested junk) and of the text
(characters flipped, cut, inserted; lines deleted or repeated), several at once.
"""

import copy
import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wmtp.errors import SettingsError
from wmtp.settings import dump_yaml, load_config, load_recipe, load_settings

BASE = """\
run:
  name: "mutant"
  tags: ["a", "b"]
model: {horizon: 4, head: residual, detach_heads: false, head_coefficients: [1, 1, 1, 1]}
pretrain:
  enabled: true
  max_steps: 30
  lr: 1e-4
  early_stopping: {enabled: true, monitor: value_loss, variance_min: 0.1, variance_max: 5.0}
train:
  algo: critic-wmtp
  max_steps: 2
  early_stopping: {enabled: true, monitor: eval_loss, mode: any, patience: 10, restore_best: true}
optim: {optimizer: adamw, lr: 5.0e-5, betas: [0.9, 0.999], scheduler: constant}
data:
  train: {sources: [mbpp], max_length: 128, batch_size: 1, pack_sequences: false}
  eval: {sources: [mbpp]}
loss: {weight_norm: mean1.0_clip, lambda: 0.3, epsilon: 0.05, max_weight: 3.0}
critic: {target: rm_sequence, gamma: 0.99, use_pseudo_rewards: true}
eval:
  sampling: {temperature: 0.7, n: 1}
  metrics: ["mbpp_exact"]
"""
CONFIG = """\
project: p
seed: 3
paths:
  models: {base: "builtin:tiny", rm: null}
  datasets: {mbpp: {train: a.jsonl, test: b.jsonl}, custom: c}
  checkpoints: {save_interval: 5, keep_last: 2}
mlflow: {enabled: false}
devices: {compute_backend: cpu, num_proc: 2}
"""
JUNK = [
    None, True, False, 0, 1, -1, 2, 3.0, 0.5, -0.5, 1e9, 10**18, 10**30, float("inf"), float("nan"), "", "x", "5", "no",
    "null", "1e-4", "mbpp", "a\nb", "\x00\x1b[31m", "é" * 200, [], {}, [1], ["mbpp", "mbpp"], ["humaneval"], [[[]]],
    {"enabled": True}, {"x": {"y": []}}, [None], {"train": "x"}, [{"a": 1}],
]  # fmt: skip
KEYS = [
    "lambda",
    "lamda",
    "temperature",
    "weight_temperature",
    "stage1",
    "pretrainer",
    "seed",
    "x y",
    "",
    "enabled",
    "<<",
]
SNIPPETS = ["\t", ": ", "- ", "\n", "{", "}", "[", "]", '"', "'", "&a ", "*a", "!!int ", "!x ", "---\n", "...", "#",
            "|\n",
            ">", "? ", "%YAML 1.1\n", "\\",
            "\x07", "é", "\u2028", "~", "yes", ".nan", "1_0", "<<: ", "@", "`", '"\\ud800"',
            '"\\UFFFFFFFF"', "\ufeff"]  # fmt: skip

# What pydantic or Python would say; none of it is for a person who wrote a recipe.
JARGON = re.compile(
    r"Traceback|pydantic|Input should|Field required|_forbidden|_type\b|literal_error|input_value|errors\.|Value error"
    r"|Extra inputs|Unexpected keyword|[Vv]alidation ?[Ee]rror|<class|object at 0x|None|True\b|False\b|\b(dict|tuple)\b"
)


def _containers(data: Any) -> list[Any]:
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return ([data] if isinstance(data, dict | list) else []) + [c for value in inner for c in _containers(value)]


@cache
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)


def _written(data: Any) -> str:
    """YAML, the two upper levels in block style, the rest as JSON, which is YAML too."""
    lines: list[str] = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            lines += [f"{json.dumps(key)}:", *(f"  {k or '~'}: {json.dumps(v)}" for k, v in value.items())]
        else:
            lines.append(f"{key or '~'}: {json.dumps(value)}")
    return "\n".join(lines).replace("NaN", ".nan").replace("Infinity", ".inf") + "\n"


def _mutate_data(data: dict[str, Any], rng: random.Random) -> None:
    place = rng.choice(_containers(data))
    if not place:
        return
    key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    match rng.randrange(4):
        case 0:
            del place[key]
        case 1 if isinstance(place, dict):
            letters = str(key)
            at = rng.randrange(len(letters) + 1)
            typos = [letters[:at] + letters[at + 1 :], letters[:at] + "q" + letters[at:]]
            place[rng.choice(KEYS + typos)] = place.pop(key)
        case 2 if isinstance(place, dict):
            place[rng.choice(KEYS)] = copy.deepcopy(rng.choice(JUNK))
        case _:
            place[key] = copy.deepcopy(rng.choice(JUNK))


def _mutate_text(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) + 1)
    lines = text.splitlines(keepends=True)
    match rng.randrange(6):
        case 0:
            return text[:at] + chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xD7FF)])) + text[at + 1 :]
        case 1:
            return text[:at]
        case 2:
            return text[:at] + rng.choice(SNIPPETS) + text[at:]
        case 3 if lines:  # a line twice: mostly a repeated key
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            return "".join(lines)
        case 4 if lines:
            del lines[rng.randrange(len(lines))]
            return "".join(lines)
        case _:
            return text[:at] + text[at + rng.randrange(1, 12) :]


def _mutant(base: str, rng: random.Random) -> str:
    text = base
    if rng.random() < 0.7:
        data = copy.deepcopy(_parsed(base))
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            _mutate_data(data, rng)
        text = _written(data)
    if rng.random() < 0.5:
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            text = _mutate_text(text, rng)
    return text


def _assert_clean(message: str, path: Path) -> None:
    for line in message.split("\n"):
        assert line.startswith(str(path)), line
        assert len(line) > len(str(path)) + 5
        assert line.isprintable(), line
        assert not JARGON.search(line.removeprefix(str(path))), line
        assert len(line) < len(str(path)) + 500, line


def _either_valid_or_cleanly_refused(load: Callable[[Path], Any], path: Path, text: str) -> bool:
    path.write_bytes(text.encode())
    try:
        first = load(path)
    except SettingsError as error:
        _assert_clean(str(error), path)
        return False
    path.write_text(dump_yaml(first), encoding="utf-8")
    assert load(path) == first
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutants")


_SETTINGS = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@settings(_SETTINGS, max_examples=1000)
@given(seed=st.integers(0, 2**32))
def test_mutated_recipe_is_valid_or_cleanly_refused(folder, seed):
    _either_valid_or_cleanly_refused(load_recipe, folder / "recipe.yaml", _mutant(BASE, random.Random(seed)))


@settings(_SETTINGS, max_examples=150)
@given(seed=st.integers(0, 2**32))
def test_mutated_config_is_valid_or_cleanly_refused(folder, seed):
    _either_valid_or_cleanly_refused(load_config, folder / "config.yaml", _mutant(CONFIG, random.Random(seed)))


@settings(_SETTINGS, max_examples=150)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_valid_or_cleanly_refused(folder, text):
    _either_valid_or_cleanly_refused(load_recipe, folder / "recipe.yaml", text)


@settings(_SETTINGS, max_examples=150)
@given(
    key=st.sampled_from(
        ["loss.lambda", "run", "data.train.sources", "paths.datasets.mbpp", "train.early_stopping", "x"]
    ),
    text=st.text(max_size=30) | st.sampled_from(SNIPPETS),
)
def test_any_override_is_valid_or_cleanly_refused(folder, key, text):
    path = folder / "base.yaml"
    path.write_text(BASE)
    try:
        load_settings(path, None, [f"{key}={text}", text])
    except SettingsError as error:
        for line in str(error).split("\n"):
            assert line.startswith(("--set ", str(path)))
            assert line.isprintable()


def test_the_base_itself_is_valid_and_mutants_are_of_both_kinds(folder):
    path = folder / "recipe.yaml"
    assert _either_valid_or_cleanly_refused(load_recipe, path, BASE)
    fates = [
        _either_valid_or_cleanly_refused(load_recipe, path, _mutant(BASE, random.Random(seed))) for seed in range(100)
    ]
    assert 10 <= sum(fates) <= 90
