"""Llama 2's `tokenizer.model` gives the tokens that SentencePiece itself gives."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from wmtp.data import Example, load_tokenizer, tokenise
from wmtp.errors import ModelError

TEXTS = [
    *Path(argparse.__file__).read_text(encoding="utf-8").split("\n\n"),
    "    return x + 1\n", "  two", " a", "\n\n\tb\n", "x = 'naïve ☃'", "12345 + 6", "a  b   c", "▁", "\r\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the settings of Llama 2's, learnt from code."""
    return train(tmp_path_factory.mktemp("spm"))


def train(folder: Path, **other: Any) -> Path:
    spm = pytest.importorskip("sentencepiece")
    (folder / "text").write_text("\n".join(TEXTS), encoding="utf-8")
    usual = {
        "input": str(folder / "text"),
        "model_prefix": str(folder / "tokenizer"),
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.99,
        "minloglevel": 2,
    }
    spm.SentencePieceTrainer.train(**(usual | other))
    return folder / "tokenizer.model"


def test_tokens_are_sentencepieces_own(trained: Path, tmp_path: Path) -> None:
    import sentencepiece as spm

    own: Any = spm.SentencePieceProcessor(model_file=str(trained))
    tokenizer = load_tokenizer(str(trained))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (own.bos_id(), own.eos_id()) == (1, 2)
    tokenizer.save_pretrained(str(tmp_path))
    again = load_tokenizer(str(tmp_path))  # as a run saves it beside the model
    for text in TEXTS:
        expected = [1, *own.encode(text)]
        assert tokenizer(text)["input_ids"] == expected, text
        assert again(text)["input_ids"] == expected, text
        assert tokenizer.decode(expected, skip_special_tokens=True) == own.decode(expected[1:])


def test_documents(trained: Path) -> None:
    """The response's tokens are those it has behind the prompt's newline."""
    import sentencepiece as spm

    own: Any = spm.SentencePieceProcessor(model_file=str(trained))
    store = tokenise([Example("def f(x):\n", "    return x + 1\n", "1")], load_tokenizer(str(trained)), 64)
    ids, prompt = store.document(0)
    assert ids[:prompt].tolist() == [1, *own.encode("def f(x):\n")]
    assert own.decode(ids[:-1].tolist()) == "def f(x):\n    return x + 1\n"
    assert ids[-1] == 2


def test_what_cannot_be_read(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    for content in (b"", b"nonsense", *(trained.read_bytes()[:n] for n in (300, 4000, -1))):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"tokenizer\.model: not a SentencePiece model that can be read"):
            load_tokenizer(str(file))


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelError, match=r"package sentencepiece .*pip install it, or put the same tokenizer as"):
        load_tokenizer(str(tmp_path / "tokenizer.model"))


@pytest.mark.parametrize(
    "other",
    [
        {"model_type": "unigram"},
        {"add_dummy_prefix": False},
        {"normalization_rule_name": "nfkc"},
        {"remove_extra_whitespaces": True},
        {"user_defined_symbols": ["eturn"]},
    ],
    ids=str,
)
def test_what_would_get_other_tokens(other: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="of another kind than Llama's"):
        load_tokenizer(str(train(tmp_path, **other)))


@pytest.mark.parametrize("name", ["bos_id", "eos_id"])
def test_without_begin_or_end(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no token for a text's begin, its end"):
        load_tokenizer(str(train(tmp_path, **{name: -1})))
