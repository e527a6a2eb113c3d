"""The value head: its fresh state, its unit, its precision, and what is refused when it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wmtp.errors import ModelError
from wmtp.model import value_head
from wmtp.model.files import weights_hash
from wmtp.model.value_head import ValueHead, load_value_head, save_value_head

TRUNK, OTHER = "a" * 64, "b" * 64


def learnt(width: int = 6, **settings: float) -> ValueHead:
    """A head whose last layer is not zero any more."""
    head = ValueHead(width, **settings)
    nn.init.normal_(head.out.weight)
    nn.init.normal_(head.norm.weight)
    return head


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_value_head(learnt(mean=-1.5, scale=0.25), tmp_path / "head", trunk=TRUNK)
    return tmp_path / "head"


def test_a_fresh_head_says_the_mean_and_still_learns() -> None:
    head = ValueHead(6, mean=-1.5, scale=0.25)
    values = head(torch.randn(2, 3, 6))
    assert values.shape == (2, 3)
    assert torch.equal(values, torch.zeros(2, 3))
    assert torch.equal(head.in_reward_units(values), torch.full((2, 3), -1.5))
    values.sub(1).square().sum().backward()
    assert head.out.weight.grad.abs().sum() > 0
    assert {name for name, _ in head.named_buffers()} == {"mean", "scale"}, "what no optimiser touches is saved too"


def test_it_computes_what_numpy_computes() -> None:
    head = learnt()
    x = np.random.default_rng(0).normal(size=(5, 6)) * 50
    p = {name: value.detach().double().numpy() for name, value in head.state_dict().items()}
    z = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * p["norm.weight"] + p["norm.bias"]
    z = z @ p["linear.weight"].T + p["linear.bias"]
    z = 0.5 * z * (1 + np.vectorize(lambda v: float(torch.erf(torch.tensor(v / 2**0.5))))(z))
    expected = (z @ p["out.weight"].T + p["out.bias"])[:, 0] * 4
    np.testing.assert_allclose(head(torch.tensor(x)).detach().numpy(), expected, atol=1e-5)


def test_low_precision_around_it_changes_nothing() -> None:
    head, hidden = learnt(), torch.randn(4, 6).bfloat16()
    plain = head(hidden.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(hidden)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)


def test_comes_back_bit_for_bit_with_its_unit(tmp_path: Path) -> None:
    head = learnt(mean=-1.5, scale=0.3)
    save_value_head(head, tmp_path / "head", trunk=TRUNK)
    again = load_value_head(tmp_path / "head", trunk=TRUNK)
    hidden = torch.randn(3, 6)
    assert torch.equal(again.in_reward_units(again(hidden)), head.in_reward_units(head(hidden)))
    meta = json.loads((tmp_path / "head" / "value_head.json").read_text())
    assert (meta["width"], meta["mean"], meta["scale"], meta["trunk"]) == (6, -1.5, pytest.approx(0.3), TRUNK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head"]


def test_a_head_of_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(ModelError, match=f"trained on hidden states of model {TRUNK}.* is {OTHER}"):
        load_value_head(saved, trunk=OTHER)


def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    file = saved / "value_head.safetensors"
    whole = file.read_bytes()
    for at in np.random.default_rng(0).integers(len(whole), size=20).tolist():
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ModelError, match="differs from its hash"):
            load_value_head(saved, trunk=TRUNK)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 2}', "format 2 is not known"),
        ('{"format": 1}', "damaged .*sha256"),
    ],
)
def test_a_damaged_description_is_named(saved: Path, content: str, message: str) -> None:
    (saved / "value_head.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        load_value_head(saved, trunk=TRUNK)


def test_a_wrong_width_is_damage(saved: Path) -> None:
    meta = json.loads((saved / "value_head.json").read_text())
    (saved / "value_head.json").write_text(json.dumps(meta | {"width": 7}))
    with pytest.raises(ModelError, match="damaged"):
        load_value_head(saved, trunk=TRUNK)


@pytest.mark.parametrize(
    ("name", "message"), [("value_head.safetensors", "is missing"), ("value_head.json", "no value head")]
)
def test_a_missing_file_is_named(saved: Path, name: str, message: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelError, match=message):
        load_value_head(saved, trunk=TRUNK)


def test_a_failed_save_leaves_the_old_head(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    before = load_value_head(saved, trunk=TRUNK).state_dict()
    monkeypatch.setattr(value_head, "save_file", full)
    with pytest.raises(ModelError, match="head can't be written: no space"):
        save_value_head(learnt(), saved, trunk=TRUNK)
    after = load_value_head(saved, trunk=TRUNK).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [path.name for path in saved.parent.iterdir()] == ["head"]


def test_identity_is_of_names_and_values() -> None:
    one, same = nn.Linear(3, 3), nn.Linear(3, 3)
    same.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(same)
    with torch.no_grad():
        same.weight[0, 0] += 1e-6
    assert weights_hash(one) != weights_hash(same)
    assert weights_hash(nn.Sequential(one)) != weights_hash(one)
