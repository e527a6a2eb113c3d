"""What many tests need: one thread, a seed, tiny random models, and batches built without the code under test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch

from wmtp.types import IGNORE, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wmtp.model.trunk import CausalTrunk

VOCABULARY = 97

# Weights are ten times larger than usual, so that attention, positions and norms matter for what comes out.
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 2}),
    "llama-tied": ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-eager": ("llama", {"num_key_value_heads": 2, "attn_implementation": "eager"}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen2-mixed": (
        "qwen2",  # the first layer looks at everything, the others, the last too, through a window
        {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "gpt_neox": ("gpt_neox", {}),
    "mistral-window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 3}),
}

Document = tuple[Sequence[int], int]
"""Tokens, and how many of them are the prompt."""


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    # Operations on tiny tensors gain nothing from a second thread, and lose a factor of five where cores are shared.
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_lm() -> Callable[..., PreTrainedModel]:
    """(kind, seed, **settings) -> a tiny random causal language model, all its parameters away from zero and one."""

    def make(kind: str = "llama", seed: int = 0, **settings: Any) -> PreTrainedModel:
        from transformers import AutoConfig, AutoModelForCausalLM

        name, own = _KINDS[kind]
        options = {"num_hidden_layers": 2} | _COMMON | own | settings
        attention = options.pop("attn_implementation", "sdpa")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **options), attn_implementation=attention)
            with torch.no_grad():
                for parameter in lm.parameters():
                    if parameter.ndim == 1:  # norms start at one and biases at zero, which would hide a lost one
                        parameter.add_(torch.randn_like(parameter) * 0.1)
        return lm.eval()

    return make


@pytest.fixture(scope="session")
def make_trunk(make_lm: Callable[..., PreTrainedModel]) -> Callable[..., CausalTrunk]:
    """As `make_lm`, as a trunk."""

    def make(kind: str = "llama", seed: int = 0, **settings: Any) -> CausalTrunk:
        from wmtp.model.trunk import CausalTrunk

        return CausalTrunk(make_lm(kind, seed, **settings), kind)

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """Rows of documents -> batch: one token after the other, then padding."""

    def make(rows: Sequence[Sequence[Document]], extra_padding: int = 0) -> Batch:
        tokens, labels, documents, positions = [], [], [], []
        number = 0
        for row in rows:
            t, l, d, p = [], [], [], []  # noqa: E741
            for ids, prompt in row:
                for i, token in enumerate(ids):
                    t.append(token)
                    l.append(token if i >= prompt else IGNORE)
                    d.append(number)
                    p.append(i)
                number += 1
            tokens.append(t)
            labels.append(l)
            documents.append(d)
            positions.append(p)
        width = max(map(len, tokens)) + extra_padding
        for t, l, d, p in zip(tokens, labels, documents, positions, strict=True):  # noqa: E741
            while len(t) < width:
                t.append(0)
                l.append(IGNORE)
                d.append(-1)
                p.append(p[-1] + 1)
        return Batch(*(torch.tensor(x, dtype=torch.int64) for x in (tokens, labels, documents, positions)))

    return make


@pytest.fixture(scope="session")
def random_documents() -> Callable[..., list[Document]]:
    """(lengths, seed, vocabulary) -> documents of random tokens; every second one begins with a prompt of two."""

    def make(lengths: Sequence[int], seed: int = 0, vocabulary: int = VOCABULARY) -> list[Document]:
        generator = torch.Generator().manual_seed(seed)
        return [
            (torch.randint(2, vocabulary, (n,), generator=generator).tolist(), 2 if i % 2 and n > 2 else 0)
            for i, n in enumerate(lengths)
        ]

    return make
