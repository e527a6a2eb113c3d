"""The heads: what each one predicts, what it pushes, and that packed documents don't see one another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from wmtp.model.mtp import MTPModel
from wmtp.ops import ce as ce_module
from wmtp.types import IGNORE, Batch

ARCHITECTURES = ["llama", "llama-tied", "llama-eager", "qwen2", "qwen2-mixed", "gpt_neox", "mistral-window"]
HEADS = ["transformer", "residual"]


@pytest.fixture
def batch(make_batch: Callable[..., Batch], random_documents: Callable[..., Any]) -> Batch:
    """Three rows of one document each, with prompts and padding."""
    return make_batch([[document] for document in random_documents([11, 8, 5])])


def ce_from_logits(logits: Tensor, batch: Batch, ahead: int) -> Tensor:
    """[B,S] CE of `logits` [B,S,V] for the token `ahead` further on, by a loop; rows hold one document each."""
    values = torch.zeros(batch.tokens.shape)
    for b in range(len(batch)):
        for t in range(batch.tokens.shape[1] - ahead):
            if batch.labels[b, t + ahead] != IGNORE:
                values[b, t] = -F.log_softmax(logits[b, t].double(), dim=0)[batch.labels[b, t + ahead]].float()
    return values


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_horizon_one_is_the_language_model(kind: str, make_lm: Any, make_trunk: Any, batch: Batch) -> None:
    output = MTPModel(make_trunk(kind), horizon=1)(batch)
    with torch.no_grad():
        logits = make_lm(kind)(input_ids=batch.tokens, attention_mask=(batch.documents >= 0).long()).logits
    assert output.ce.shape == (*batch.tokens.shape, 1)
    assert output.ce.dtype == torch.float32
    torch.testing.assert_close(output.ce[..., 0].detach(), ce_from_logits(logits, batch, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("head", HEADS)
def test_a_fresh_head_says_what_head_1_says(kind: str, head: Any, make_lm: Any, make_trunk: Any, batch: Batch) -> None:
    # So the CE of head k is that of the trunk's own logits, for the token k further on.
    output = MTPModel(make_trunk(kind), horizon=4, head=head)(batch)
    with torch.no_grad():
        logits = make_lm(kind)(input_ids=batch.tokens, attention_mask=(batch.documents >= 0).long()).logits
    for k in range(1, 5):
        found = output.ce[..., k - 1].detach()
        torch.testing.assert_close(found, ce_from_logits(logits, batch, k), atol=1e-5, rtol=1e-5)
    counts = [int((output.ce[..., k] > 0).sum()) for k in range(4)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[3] > 0


@pytest.mark.parametrize("head", HEADS)
def test_each_head_is_computed_by_its_own_weights(head: Any, make_trunk: Any, batch: Batch) -> None:
    model = MTPModel(make_trunk(), horizon=4, head=head)
    before = model(batch).ce.detach()
    with torch.no_grad():
        for parameter in model.heads[1].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    changed = (model(batch).ce.detach() != before).any(dim=0).any(dim=0)
    assert changed.tolist() == [False, False, True, False]


def test_residual_head_by_hand(make_trunk: Any, batch: Batch) -> None:
    model = MTPModel(make_trunk(), horizon=2, head="residual")
    torch.nn.init.normal_(model.heads[0].linear.weight, std=0.2)
    output = model(batch)
    z = output.hidden @ model.heads[0].linear.weight.T
    logits = (output.hidden + z * torch.sigmoid(z)) @ model.trunk.unembedding.weight.T
    torch.testing.assert_close(output.ce[..., 1], ce_from_logits(logits.detach(), batch, 2), atol=1e-5, rtol=1e-5)


def test_what_comes_out(make_trunk: Any, batch: Batch) -> None:
    model = MTPModel(make_trunk(), horizon=3)
    output = model(batch)
    assert output.ce.shape == output.targets.shape == (*batch.tokens.shape, 3)
    assert not output.ce[output.targets == IGNORE].any()
    assert (output.ce[output.targets != IGNORE] > 0).all()
    assert output.ce.requires_grad
    assert not output.hidden.requires_grad
    own = model.trunk.lm.base_model(input_ids=batch.tokens).last_hidden_state
    torch.testing.assert_close(output.hidden, own, atol=1e-5, rtol=1e-5)


def test_documents_too_short_for_any_target(make_trunk: Any, make_batch: Any) -> None:
    for detach in (False, True):
        model = MTPModel(make_trunk(), horizon=4, detach_heads=detach)
        output = model(make_batch([[([5], 0)], [([7], 0)]]))
        assert output.ce.shape == (2, 1, 4)
        assert not output.ce.any()
        output = model(make_batch([[([5, 6], 0), ([7, 8], 0)]]))  # targets for head 1 alone
        assert (output.ce > 0).sum(dim=(0, 1)).tolist() == [2, 0, 0, 0]
        output.ce.sum().backward()
        assert all(bool(g.isfinite().all()) for g in gradients(model).values())


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt_neox"])
@pytest.mark.parametrize("head", HEADS)
def test_detached_heads_learn_without_pushing_the_trunk(kind: str, head: Any, make_trunk: Any, batch: Batch) -> None:
    def pushed(horizon: int, *, detach: bool) -> MTPModel:
        model = MTPModel(make_trunk(kind), horizon, head, detach_heads=detach)
        model(batch).ce.sum().backward()
        return model

    alone, detached, joint = pushed(1, detach=False), pushed(4, detach=True), pushed(4, detach=False)

    expected = gradients(alone.trunk)
    assert len(expected) == len(list(alone.trunk.parameters()))
    found, pushing = gradients(detached.trunk), gradients(joint.trunk)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)
        # Joint heads do push the trunk, so this test can fail; its last layer is a head itself and stands beside them.
        beside = head == "transformer" and "layers.1." in name
        assert beside == (float((pushing[name] - gradient).abs().max()) < 1e-4), name
    # What the heads themselves get does not depend on whether they push the trunk.
    for name, gradient in gradients(joint.heads).items():
        assert gradient.any(), name
        torch.testing.assert_close(gradients(detached.heads)[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_detaching_changes_no_loss(head: Any, make_trunk: Any, batch: Batch) -> None:
    plain, detached = (MTPModel(make_trunk(), 3, head, detach_heads=detach)(batch).ce for detach in (False, True))
    torch.testing.assert_close(plain, detached, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("detach", [False, True])
def test_a_frozen_trunk_gets_no_gradient_and_heads_do(head: Any, detach: bool, make_trunk: Any, batch: Batch) -> None:
    model = MTPModel(make_trunk(), 3, head, detach_heads=detach)
    model(batch).ce.sum().backward()
    expected = gradients(model.heads)
    model.zero_grad()
    model.train_trunk(False)
    model(batch).ce.sum().backward()
    assert not gradients(model.trunk)
    found = gradients(model.heads)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)
    model.train_trunk(True)
    assert all(p.requires_grad for p in model.parameters())


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return result


@pytest.mark.parametrize("detach", [False, True])
def test_no_logits_of_all_heads_and_no_logits_of_one(
    detach: bool, monkeypatch: pytest.MonkeyPatch, make_trunk: Any, make_batch: Any, random_documents: Any
) -> None:
    monkeypatch.setitem(ce_module.BLOCK_ELEMENTS, "cpu", 1)
    B, S, H, V = 4, 24, 4, 4096
    batch = make_batch([[document] for document in random_documents([S] * B)])
    model = MTPModel(make_trunk(vocab_size=V, hidden_size=16), H, detach_heads=detach)
    with LargestTensor() as largest:
        model(batch).ce.sum().backward()
    assert largest.numel <= max(V * 16, B * S * H * 256)
    assert largest.numel < B * S * V, "not even the logits of one head exist"
    with LargestTensor() as largest:
        model.trunk.lm(input_ids=batch.tokens)
    assert largest.numel == B * S * V, "the measure itself sees such a tensor"


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("head", HEADS)
def test_packing_changes_no_documents_ce(
    kind: str, head: Any, make_trunk: Any, make_batch: Any, random_documents: Any
) -> None:
    documents = random_documents([9, 7, 1, 5, 12, 2, 6])
    model = MTPModel(make_trunk(kind), 4, head)
    with torch.no_grad():
        for parameter in model.heads.parameters():  # away from the copies that they begin as
            parameter.add_(torch.randn_like(parameter) * 0.1)
        assert model.keeps_documents_apart()
        batch = make_batch([documents[:4], documents[4:]], extra_padding=3)
        together = model(batch).ce
        difference = 0.0
        for number, document in enumerate(documents):
            alone = model(make_batch([[document]])).ce[0]
            torch.testing.assert_close(together[batch.documents == number], alone, atol=1e-5, rtol=1e-5)
        # Had the documents seen one another (positions that go on), this would show.
        leaking = Batch(batch.tokens, batch.labels, batch.documents, torch.arange(batch.tokens.shape[1]).expand(2, -1))
        difference = float((model(leaking).ce - together).abs().max())
    assert difference > 1e-2


def test_a_document_does_not_depend_on_what_comes_after_it(make_trunk: Any, batch: Batch) -> None:
    # Changing token j may change only the CE of positions >= j, and of those whose target it is.
    model = MTPModel(make_trunk(), 3)
    with torch.no_grad():
        before = model(batch).ce
        changed = Batch(batch.tokens.clone(), batch.labels, batch.documents, batch.positions)
        changed.tokens[:, 4] = (changed.tokens[:, 4] + 1) % 97
        difference = (model(changed).ce - before).abs()
    assert float(difference[:, :4].max()) <= 1e-6
    assert float(difference[:, 4:].max()) > 1e-2


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt_neox"])
def test_heads_are_the_models_own_parameters(kind: str, head: Any, make_trunk: Any, batch: Batch) -> None:
    trunk = make_trunk(kind)
    names = [name for name, _ in trunk.named_parameters()]
    model = MTPModel(trunk, 4, head)
    own = {name for name, _ in model.named_parameters()}
    assert {f"trunk.{name}" for name in names} == {name for name in own if name.startswith("trunk.")}
    heads = own - {f"trunk.{name}" for name in names}
    each = len(list(trunk.last_layer.parameters())) if head == "transformer" else 1
    assert len(heads) == 3 * each
    assert {name.split(".")[1] for name in heads} == {"0", "1", "2"}
    assert all(name.startswith("heads.") for name in heads)
    places = [p.data_ptr() for p in model.parameters()]
    assert len(set(places)) == len(places), "two parameters share memory"

    before = copy.deepcopy(trunk.state_dict())
    optimizer = torch.optim.SGD(model.heads.parameters(), lr=0.1)
    model(batch).ce.sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    assert not trunk.last_layer._forward_pre_hooks, "a hook was left behind"


def test_a_copy_computes_the_same_and_shares_nothing(make_trunk: Any, batch: Batch) -> None:
    model = MTPModel(make_trunk(), 3)
    with torch.no_grad():
        model(batch)
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(twin(batch).ce, model(batch).ce, atol=1e-2)
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(batch).ce, model(batch).ce)
