"""The embedded model's tokenizer: lossless on any text, single digits, prompts that fit the recipes."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from wmtp.data.builtin import builtin_tasks
from wmtp.model.builtin import EOS, PAD, tiny_config, tokenizer_file

ROOT = Path(__file__).parents[3]
TOKENIZER = Tokenizer.from_file(str(tokenizer_file()))


def lengths(split: str) -> list[tuple[int, int]]:
    rows = builtin_tasks(split)
    prompts = TOKENIZER.encode_batch([f'"""\n{row["text"]}\n{row["test_list"][0]}\n"""\n' for row in rows])
    return [
        (len(p.ids), len(c.ids) + 1)
        for p, c in zip(prompts, TOKENIZER.encode_batch([r["code"] for r in rows]), strict=True)
    ]


@given(st.text(max_size=200))
def test_any_text_comes_back_unchanged(text: str):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn x  # tab, two spaces\n\n\n",
        "a  b\r\n c \t d ",
        "\u65e5\u672c\u8a9e \U0001f600 \u00e9\u00df \u200b\u00a0.",
        "".join(map(chr, range(0x250))),
        "<pad",
        "x_1 = 0x1F + 10_000.5e-3",
    ],
)
def test_awkward_texts_come_back_unchanged(text: str):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_every_byte_is_in_the_vocabulary():
    """A lone byte of a long UTF-8 character must be a token of its own, else rare characters would be lost."""
    single = [token for token in TOKENIZER.get_vocab() if len(token) == 1]
    assert len(single) == 256


def test_special_tokens_are_two_and_no_other():
    added = {i: token.content for i, token in TOKENIZER.get_added_tokens_decoder().items()}
    assert added == {0: PAD, 1: EOS}
    assert (tiny_config()["pad_token_id"], tiny_config()["eos_token_id"]) == (0, 1)
    assert TOKENIZER.encode(f"a{EOS}").ids[-1] == 1


def test_digits_stand_alone():
    assert [t for t in TOKENIZER.encode("x + 1234 * 56").tokens if any(c.isdigit() for c in t)] == list("123456")
    assert not [t for t in TOKENIZER.get_vocab() if len(t) > 1 and any(c.isdigit() for c in t)]


def test_vocabulary_is_the_model_s():
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(tiny_config()["vocab_size"]))


def test_nothing_is_added_or_cut():
    stored = json.loads(tokenizer_file().read_text(encoding="utf-8"))
    assert (stored["post_processor"], stored["truncation"], stored["padding"], stored["normalizer"]) == (None,) * 4


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_tasks_fit_in_128_tokens_and_are_short(split: str):
    total = [prompt + response for prompt, response in lengths(split)]
    assert max(total) <= 128
    assert 45 <= sum(total) / len(total) <= 75


def test_file_is_what_the_script_makes():
    path = ROOT / "benchmarks" / "make_tiny_tokenizer.py"
    spec = importlib.util.spec_from_file_location("make_tiny_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert json.loads(script.make().to_str()) == json.loads(tokenizer_file().read_text(encoding="utf-8"))
