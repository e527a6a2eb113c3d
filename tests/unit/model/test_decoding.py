"""Token by token with a cache a model says what it says of the whole text; and nothing is computed that need not be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from wmtp.errors import ModelError
from wmtp.model.decoding import Decoder, check, prepare
from wmtp.model.mtp import MTPModel
from wmtp.model.trunk import CausalTrunk

KINDS = ["llama", "llama-tied", "llama-eager", "qwen2", "qwen2-mixed", "gpt_neox", "mistral-window"]
PROMPTS = [[5, 17, 3], [8, 2, 9, 11, 40, 41, 42, 8, 9], [30], [12, 13, 14, 15, 16, 17]]


def unlike(model: MTPModel, seed: int = 3) -> MTPModel:
    """`model` with heads that differ from the layer that they are copies of."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture
def make_model(make_trunk: Callable[..., CausalTrunk]) -> Callable[..., MTPModel]:
    def make(kind: str = "llama", head: Any = "transformer", horizon: int = 3, **settings: Any) -> MTPModel:
        return unlike(MTPModel(make_trunk(kind, **settings), horizon, head))

    return make


@torch.no_grad()
def whole(model: MTPModel, text: Sequence[int]) -> Tensor:
    """[S,H,V] logits of all heads, computed from the whole text at once."""
    trunk = model.trunk(torch.tensor([text]), torch.arange(len(text))[None])
    logits = torch.stack([model.trunk.unembedding(h) for h in model.run_heads(trunk, model.horizon)], dim=2)[0]
    torch.testing.assert_close(logits[:, 0], model.trunk.lm(input_ids=torch.tensor([text])).logits[0])
    return logits


def fed_tokens(model: MTPModel) -> list[int]:
    """How many tokens each forward pass was given, rows times width; grows as passes are made."""
    counts: list[int] = []
    model.trunk.lm.get_input_embeddings().register_forward_hook(lambda _m, args, _o: counts.append(args[0].numel()))
    return counts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["transformer", "residual"])
def test_every_position_of_ragged_rows_is_as_from_the_whole_text(kind: str, head: Any, make_model: Any) -> None:
    model = make_model(kind, head)
    generator = torch.Generator().manual_seed(0)
    texts = [p + torch.randint(2, 97, (12,), generator=generator).tolist() for p in PROMPTS]
    expected = [whole(model, text) for text in texts]
    decoder = Decoder(model, len(texts), heads=3)
    found = decoder.logits(decoder.start([0, 1, 2, 3], PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(found[row], expected[row][len(prompt) - 1], atol=1e-4, rtol=1e-4)
    done = [0, 0, 0, 0]
    for take in [(1, 1, 1, 1), (3, 1, 2, 0), (0, 2, 1, 3), (2, 3, 3, 3), (2, 1, 0, 2)]:
        # Rows keep different numbers of the four tokens that each is fed: the rest are rejected drafts.
        starts = [len(p) + d for p, d in zip(PROMPTS, done, strict=True)]
        fed = [[*text[s : s + n], 7, 7, 7, 7][:4] for text, s, n in zip(texts, starts, take, strict=True)]
        found = decoder.logits(decoder.feed(torch.tensor(fed), starts))
        for row, (start, n) in enumerate(zip(starts, take, strict=True)):
            torch.testing.assert_close(found[row, :n], expected[row][start : start + n], atol=1e-4, rtol=1e-4)
        done = [d + n for d, n in zip(done, take, strict=True)]


def test_rows_are_dropped_and_given_to_others(make_model: Any) -> None:
    model = make_model()
    decoder = Decoder(model, 4, heads=3)
    decoder.start([0, 1, 2, 3], PROMPTS)
    other = [50, 51, 52, 53, 54]
    torch.testing.assert_close(decoder.logits(decoder.start([1], [other]))[0], whole(model, other)[-1])
    decoder.keep([1, 3])
    found = decoder.logits(decoder.feed(torch.tensor([[60], [61]]), [len(other), len(PROMPTS[3])]))
    for row, text in enumerate([[*other, 60], [*PROMPTS[3], 61]]):
        torch.testing.assert_close(found[row, 0], whole(model, text)[-1], atol=1e-4, rtol=1e-4)


def test_the_cache_grows_with_the_text(make_model: Any) -> None:
    model = make_model(max_position_embeddings=400)
    text = torch.randint(2, 97, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    decoder = Decoder(model, 1)
    decoder.start([0], [text[:100]])
    found = [decoder.logits(decoder.feed(torch.tensor([[text[i]]]), [i]))[0, 0, 0] for i in range(100, 300)]
    torch.testing.assert_close(torch.stack(found), whole(model, text)[100:, 0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("rows", "tokens"),
    [
        ([1], [1]),  # of `b` its last token alone: the rest is in row 0
        ([0, 1], [10, 1]),  # row 0 itself has all of `b` but its last token; row 1 had nothing of `a`
        ([1, 0], [9, 1]),  # row 1 had nothing of `b`; row 0 has `a` already, but for the last token's hidden state
    ],
)
def test_what_prompts_have_in_common_is_computed_once(rows: list[int], tokens: list[int], make_model: Any) -> None:
    model = make_model()
    common = [5, 6, 7, 8, 9, 10, 11, 12]
    a, b = [*common, 20, 21], [*common, 30]
    decoder = Decoder(model, 2, heads=3)
    decoder.start([0], [a])
    decoder.feed(torch.tensor([[70, 71], [0, 0]]), [len(a), 0])  # row 0 goes on; its prompt stays as it was
    prompts = [b, a][: len(rows)]
    expected = [whole(model, prompt)[-1] for prompt in prompts]
    counts = fed_tokens(model)
    found = decoder.logits(decoder.start(rows, prompts))
    assert counts == tokens
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_the_same_prompt_many_times_costs_one(make_model: Any) -> None:
    model = make_model()
    counts = fed_tokens(model)
    decoder = Decoder(model, 5, heads=3)
    found = decoder.start([0, 1, 2, 3, 4], [PROMPTS[1]] * 5)
    assert counts == [len(PROMPTS[1]), 4]
    torch.testing.assert_close(found, found[:1].expand_as(found), atol=1e-5, rtol=1e-5)


def test_all_rows_can_take_over_from_one_another(make_model: Any) -> None:
    """Two rows that change their prompts: what each needs lies in a row that begins anew itself."""
    model = make_model()
    a, b = [3, 4, 5, 6, 7, 8], [40, 41, 42, 43]
    decoder = Decoder(model, 2, heads=3)
    decoder.start([0, 1], [a, b])
    found = decoder.logits(decoder.start([0, 1], [b, a]))
    for hidden, prompt in zip(found, [b, a], strict=True):
        torch.testing.assert_close(hidden, whole(model, prompt)[-1], atol=1e-4, rtol=1e-4)


def test_a_broken_row_does_not_poison_the_next_request(make_model: Any) -> None:
    model = make_model()
    decoder = Decoder(model, 1, heads=3)
    decoder.start([0], [PROMPTS[1]])
    embedding = model.trunk.lm.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[90] = torch.nan
    assert decoder.feed(torch.tensor([[90, 90]]), [len(PROMPTS[1])]).isnan().all()
    torch.testing.assert_close(decoder.logits(decoder.start([0], [[3, 4]]))[0], whole(model, [3, 4])[-1])


def test_one_head_runs_one_head(make_model: Any) -> None:
    model = make_model()

    def fail(*_: object) -> None:
        raise AssertionError("a head ran")

    for head in model.heads:
        head.register_forward_pre_hook(fail)
    decoder = Decoder(model, 4)
    assert decoder.start([0, 1, 2, 3], PROMPTS).shape == (4, 1, 32)
    assert decoder.feed(torch.tensor([[1]] * 4), list(map(len, PROMPTS))).shape == (4, 1, 1, 32)


def test_learnt_positions_end_with_the_window() -> None:
    """Drafts reach beyond it, where such a model has no position; the tokens that count are as they should be."""
    config = GPT2Config(vocab_size=97, n_positions=8, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    model = unlike(MTPModel(CausalTrunk(GPT2LMHeadModel(config).eval(), "gpt2"), 4))
    text = [5, 6, 7, 8, 9, 10, 11]
    decoder = Decoder(model, 1, heads=4)
    decoder.start([0], [text[:4]])
    decoder.feed(torch.tensor([[8, 1, 1, 1]]), [4])
    found = decoder.logits(decoder.feed(torch.tensor([[9, 10, 11, 1]]), [4]))
    torch.testing.assert_close(found[0, :3], whole(model, text)[4:], atol=1e-4, rtol=1e-4)
    found = decoder.logits(decoder.feed(torch.tensor([[11, 1, 1, 1]]), [6]))
    torch.testing.assert_close(found[0, 0], whole(model, text)[6], atol=1e-4, rtol=1e-4)


def test_a_model_that_does_not_go_with_the_cache_is_refused(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check(make_model())
    monkeypatch.setattr(CausalTrunk, "_mask", lambda self, cache: torch.zeros(len(cache.positions), 1, 1, cache.width))
    with pytest.raises(ModelError, match=r"llama: .* token by token"):
        check(make_model())


def test_another_precision_is_a_copy(make_model: Any) -> None:
    model = make_model()
    assert prepare(model, torch.float32) is model
    copy = prepare(model.train(), torch.bfloat16)
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    decoders = [Decoder(m, 4, heads=3) for m in (model, copy)]
    fp32, bf16 = (d.logits(d.start([0, 1, 2, 3], PROMPTS)).log_softmax(-1) for d in decoders)
    assert fp32.dtype == bf16.dtype == torch.float32
    torch.testing.assert_close(bf16, fp32, atol=0.3, rtol=0.1)


def test_dropout_is_refused(make_model: Any) -> None:
    with pytest.raises(AssertionError, match="dropout"):
        Decoder(make_model().train(), 1)


def test_modules_are_as_before(make_model: Any) -> None:
    """No hook stays behind, and the cache is not part of the model."""
    model = make_model()
    before = [name for name, _ in model.named_modules()]
    decoder = Decoder(model, 2, heads=3)
    decoder.start([0, 1], PROMPTS[:2])
    assert [name for name, _ in model.named_modules()] == before
    assert not any(isinstance(m, nn.Module) and m._forward_pre_hooks for m in model.modules())
