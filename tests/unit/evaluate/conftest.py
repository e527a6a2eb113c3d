"""A model that says what it is told to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from wmtp.data.tokenize import Tokenizer, load_tokenizer
from wmtp.model.builtin import tokenizer_file
from wmtp.model.mtp import MTPModel
from wmtp.model.trunk import CausalTrunk


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The embedded one: byte-level BPE, eos is 1."""
    return load_tokenizer(str(tokenizer_file()))


@pytest.fixture
def parrot(make_lm: Callable[..., Any]) -> Callable[..., MTPModel]:
    """Token ids, each at most once -> a model that follows each of them with the next one, whatever came before."""

    def make(script: Sequence[int], horizon: int = 1) -> MTPModel:
        assert len(set(script)) == len(script)
        lm = make_lm(vocab_size=1024, hidden_size=256)
        with torch.no_grad():
            for name, parameter in lm.named_parameters():
                if "_proj" in name or "layernorm" in name:
                    parameter.zero_()  # layers add nothing: the last token alone decides
            lm.model.norm.weight.fill_(1)
            embedding = torch.nn.functional.normalize(torch.randn(1024, 256), dim=1)
            lm.model.embed_tokens.weight.copy_(embedding)
            lm.lm_head.weight.zero_()
            for token, following in itertools.pairwise(script):
                lm.lm_head.weight[following] = embedding[token]
        return MTPModel(CausalTrunk(lm, "parrot"), horizon).eval()

    return make
