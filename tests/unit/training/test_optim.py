"""Optimizers against loops by hand, and their state: out and in again, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wmtp.errors import CheckpointError
from wmtp.model import MTPModel
from wmtp.training.optim import Lion, load_tensors_into, load_weights_into, make_optimizer, tensors_of

KINDS = ["adamw", "lion", "sgd"]


class Small(nn.Module):
    """A matrix, a bias and a norm of their own sizes, and a parameter that no loss uses."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(5, 3)
        self.norm = nn.LayerNorm(3)
        self.unused = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


def optimizer_of(model: nn.Module, kind: Any, lr: float = 0.01, weight_decay: float = 0.1) -> torch.optim.Optimizer:
    return make_optimizer(model, kind, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        random = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 5, generator=random), torch.randn(8, 3, generator=random)
        optimizer.zero_grad()
        ((model(x) - y) ** 2).sum().backward()
        optimizer.step()


def by_hand(kind: str, p: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float) -> np.ndarray:
    """The published update, element by element, in float64."""
    b1, b2 = 0.9, 0.95
    p, m, v = p.astype(np.float64).ravel(), np.zeros(p.size), np.zeros(p.size)
    for t, gradient in enumerate(gradients, start=1):
        for i, g in enumerate(gradient.astype(np.float64).ravel()):
            if kind == "lion":  # arXiv 2302.06675, program 1
                c = b1 * m[i] + (1 - b1) * g
                p[i] -= lr * (float(np.sign(c)) + decay * p[i])
                m[i] = b2 * m[i] + (1 - b2) * g
            elif kind == "adamw":  # arXiv 1711.05101, algorithm 2
                m[i] = b1 * m[i] + (1 - b1) * g
                v[i] = b2 * v[i] + (1 - b2) * g * g
                step = (m[i] / (1 - b1**t)) / (np.sqrt(v[i] / (1 - b2**t)) + 1e-8)
                p[i] -= lr * (step + decay * p[i])
            else:  # momentum, the decay as part of the gradient
                m[i] = b1 * m[i] + g + decay * p[i]
                p[i] -= lr * m[i]
    return p.reshape(gradients[0].shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_against_a_loop(kind: str, decay: float) -> None:
    model = nn.Module()
    model.matrix, model.vector = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(6))
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    random = np.random.default_rng(1)
    gradients = {name: [random.normal(size=p.shape).astype(np.float32) for _ in range(6)] for name, p in start.items()}
    gradients["matrix"][2][0, 0] = 0.0
    optimizer = optimizer_of(model, kind, lr=0.05, weight_decay=decay)
    for t in range(6):
        for name, p in model.named_parameters():
            p.grad = torch.from_numpy(gradients[name][t])
        optimizer.step()
    for name, p in model.named_parameters():
        # Weight decay acts on matrices alone.
        expected = by_hand(kind, start[name], gradients[name], 0.05, decay if name == "matrix" else 0.0)
        np.testing.assert_allclose(p.detach().numpy(), expected, atol=2e-6, rtol=2e-6)


def test_lion_leaves_alone_what_has_no_gradient_and_where_the_sign_is_zero() -> None:
    p, q = nn.Parameter(torch.tensor([[1.0, 2.0]])), nn.Parameter(torch.ones(1))
    optimizer = Lion([{"params": [p, q]}], lr=0.1, betas=(0.9, 0.99))
    p.grad = torch.tensor([[0.0, -5.0]])
    optimizer.step()
    assert torch.equal(p.detach(), torch.tensor([[1.0, 2.1]]))
    assert torch.equal(q.detach(), torch.ones(1))
    assert q not in optimizer.state


class TestGroups:
    @pytest.mark.parametrize("kind", KINDS)
    def test_decay_on_matrices_alone(self, kind: Any) -> None:
        model = Small()
        optimizer = optimizer_of(model, kind)
        decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.1 for p in g["params"]}
        plain = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.0 for p in g["params"]}
        assert decayed == {id(model.linear.weight), id(model.unused)}
        assert plain == {id(model.linear.bias), id(model.norm.weight), id(model.norm.bias)}
        assert all(g["lr"] == 0.01 for g in optimizer.param_groups)

    def test_frozen_parameters_are_not_held(self) -> None:
        model = Small()
        model.linear.requires_grad_(False)
        model.unused.requires_grad_(False)
        optimizer = optimizer_of(model, "adamw")
        assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(p) for p in model.norm.parameters()]

    def test_a_tied_weight_is_held_once(self, make_trunk: Any) -> None:
        trunk = make_trunk("llama-tied")
        held = [id(p) for g in optimizer_of(trunk, "adamw").param_groups for p in g["params"]]
        assert len(held) == len(set(held)) == len(list(trunk.parameters()))

    @pytest.mark.parametrize("head", ["transformer", "residual"])
    def test_parts_with_a_rate_of_their_own(self, make_trunk: Any, head: Any) -> None:
        model = MTPModel(make_trunk("llama-tied"), 3, head)
        given = {"lr": 0.01, "weight_decay": 0.0, "betas": (0.0, 0.0)}
        optimizer = make_optimizer(model, "sgd", **given, own_rates={model.heads: 0.5})
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        moved = {name: (start[name] - p.detach()).mean().item() for name, p in model.named_parameters()}
        assert any(name.startswith("heads.") for name in moved)
        for name, by in moved.items():
            assert by == pytest.approx(0.5 if name.startswith("heads.") else 0.01, rel=1e-3), name

    def test_names(self) -> None:
        assert isinstance(optimizer_of(Small(), "adamw"), torch.optim.AdamW)
        assert isinstance(optimizer_of(Small(), "lion"), Lion)
        assert isinstance(optimizer_of(Small(), "sgd"), torch.optim.SGD)


class TestState:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("at", [0, 3])
    def test_goes_on_as_if_nothing_had_happened(self, kind: Any, at: int) -> None:
        undisturbed = Small()
        optimizer = optimizer_of(undisturbed, kind)
        train(undisturbed, optimizer, range(at))
        kept = copy.deepcopy(tensors_of(undisturbed, optimizer))
        train(undisturbed, optimizer, range(at, at + 3))

        resumed = Small(seed=9)
        fresh = optimizer_of(resumed, kind)
        train(resumed, fresh, range(20, 22))  # what was there before is replaced
        load_tensors_into(resumed, fresh, copy.deepcopy(kept))
        again = tensors_of(resumed, fresh)
        assert {part: again[part].keys() for part in again} == {part: kept[part].keys() for part in kept}
        for part, tensors in kept.items():
            for name, tensor in tensors.items():
                assert torch.equal(again[part][name], tensor), name
                assert again[part][name].dtype == tensor.dtype
        train(resumed, fresh, range(at, at + 3))
        for name, p in undisturbed.named_parameters():
            assert torch.equal(p, resumed.get_parameter(name)), name

    def test_names_and_slots(self) -> None:
        model = Small()
        optimizer = optimizer_of(model, "adamw")
        train(model, optimizer, range(1))
        tensors = tensors_of(model, optimizer)
        assert set(tensors["model"]) == {name for name, _ in model.named_parameters()}
        learnt = set(tensors["model"]) - {"unused"}
        assert set(tensors["optimizer"]) == {
            f"{n}/{slot}" for n in learnt for slot in ("step", "exp_avg", "exp_avg_sq")
        }
        assert all(not t.requires_grad for part in tensors.values() for t in part.values())

    def test_a_frozen_trunk_is_left_out(self) -> None:
        model = Small()
        model.linear.requires_grad_(False)
        assert set(tensors_of(model, optimizer_of(model, "sgd"))["model"]) == {"norm.weight", "norm.bias", "unused"}

    def test_weights_of_another_model_are_refused_and_nothing_is_changed(self) -> None:
        model = Small()
        before = copy.deepcopy(model.state_dict())
        for wrong in ({"norm.weight": torch.zeros(3), "other": torch.zeros(3)}, {"norm.weight": torch.zeros(4)}):
            with pytest.raises(CheckpointError, match="another model"):
                load_weights_into(model, wrong)
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_weights_that_are_missing_are_noticed(self) -> None:
        model = Small()
        optimizer = optimizer_of(model, "adamw")
        tensors = copy.deepcopy(tensors_of(model, optimizer))
        del tensors["model"]["norm.bias"]
        with pytest.raises(CheckpointError):
            load_tensors_into(model, optimizer, tensors)

    @pytest.mark.parametrize(
        ("saved", "loaded"), [("adamw", "lion"), ("lion", "adamw"), ("sgd", "adamw"), ("lion", "sgd")]
    )
    def test_the_state_of_another_optimizer_is_refused(self, saved: Any, loaded: Any) -> None:
        model = Small()
        optimizer = optimizer_of(model, saved)
        train(model, optimizer, range(2))
        tensors = copy.deepcopy(tensors_of(model, optimizer))
        with pytest.raises(CheckpointError):
            load_tensors_into(model, optimizer_of(model, loaded), tensors)
