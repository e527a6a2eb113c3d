"""Examples become the right tokens, with an exact boundary, and are tokenised once."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

import wmtp.data.tokenize as tokenize_module
from wmtp.data import Example, TokenCounts, load_tokenizer, pad_id, prefix_tokens, tokenise
from wmtp.data.cache import open_or_build
from wmtp.errors import DataError, ModelError

EOS, PAD, BOS = 0, 1, 2
BYTE0 = 3  # the id of byte b is BYTE0 + b, as long as nothing is merged


def byte_backend(merges: tuple[tuple[str, str], ...] = (), bos: bool = False) -> Backend:
    """Byte-level BPE in the manner of GPT-2, built by hand: one token a byte, then the merges."""
    letters = list(pre_tokenizers.ByteLevel.alphabet())
    by_byte = {
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(chr(b))[0][0]: b
        for b in range(128)
    }
    letters.sort(key=lambda c: (by_byte.get(c, 128), c))  # ASCII in order, the rest after it
    names = ["<eos>", "<pad>", "<s>", *letters, *(a + b for a, b in merges)]
    backend = Backend(models.BPE({name: i for i, name in enumerate(names)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A <eos>", special_tokens=[("<s>", BOS), ("<eos>", EOS)]
        )
    return backend


def byte_tokenizer(**options) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_backend(**options), eos_token="<eos>", pad_token="<pad>", bos_token="<s>"
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """In the manner of Llama 2: a space is put before each text, newlines are byte tokens, bos before all."""
    chars = ["▁", *"defrtunxyabc():=+1"]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("▁", "d"), ("d", "e"), ("de", "f"), ("▁", "def"), ("r", "e")]
    names = ["</s>", "<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), *chars]
    names += dict.fromkeys(a + b for a, b in merges)
    backend = Backend(models.BPE({n: i for i, n in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def ids(text: str) -> list[int]:
    return [BYTE0 + byte for byte in text.encode("ascii")]


def example(prompt: str, response: str) -> Example:
    return Example(prompt, response, "test")


def documents(store) -> list[tuple[list[int], int]]:
    return [(tokens.tolist(), prompt) for tokens, prompt in (store.document(i) for i in range(len(store)))]


# --- layout of a document


def test_prompt_response_eos():
    store = tokenise([example("ab\n", "cd\n"), example("", "e"), example("f", "g<eos>")], byte_tokenizer(), 100)
    assert documents(store) == [
        ([*ids("ab\ncd\n"), EOS], 3),
        ([*ids("e"), EOS], 0),
        ([*ids("fg"), EOS, EOS], 1),
    ]
    assert store.lengths.tolist() == [7, 2, 4]
    assert store.counts == TokenCounts(examples=3, documents=3, tokens=13, truncated=0, split=0, dropped=0)


def test_nothing_merges_across_the_boundary():
    tokenizer = byte_tokenizer(merges=(("b", "c"), ("a", "b")))
    bc, ab = (tokenizer.convert_tokens_to_ids(t) for t in ("bc", "ab"))
    store = tokenise([example("ab", "cbc"), example("", "abcbc")], tokenizer, 100)
    assert documents(store) == [([ab, *ids("c"), bc, EOS], 1), ([*ids("a"), bc, bc, EOS], 0)]


def test_bos_stands_once_before_the_prompt_and_eos_once_at_the_end():
    tokenizer = byte_tokenizer(bos=True)  # its template adds both
    assert prefix_tokens(tokenizer) == [BOS]
    assert prefix_tokens(byte_tokenizer()) == []
    store = tokenise([example("a", "b"), example("", "c")], tokenizer, 100)
    assert documents(store) == [([BOS, *ids("ab"), EOS], 2), ([BOS, *ids("c"), EOS], 1)]


@pytest.mark.parametrize("make", [byte_tokenizer, llama_tokenizer])
def test_tokens_read_back_as_prompt_and_response(make):
    """Above all no space between them, which would be an indentation error in Python."""
    examples = [
        example('"""\nadd\n"""\n', "def f(x):\n    return x\n"),
        example("def f(x):\n", "    return x\n"),
        example("a", "\n\ndef"),
        example("a ", " b"),
        example("a", "b"),
        example("ü\n", "ß🙂"),
        example("", "def f():\n\treturn 1"),
        example("", "  x"),
    ]
    tokenizer = make()
    store = tokenise(examples, tokenizer, 1000)
    start = len(prefix_tokens(tokenizer))
    for (tokens, prompt), wanted in zip(documents(store), examples, strict=True):
        assert tokenizer.decode(tokens[start:-1]) == wanted.prompt + wanted.response
        assert tokenizer.decode(tokens[start:prompt]) == wanted.prompt
        assert tokens[:prompt] == tokenizer(wanted.prompt).input_ids[:prompt]
        assert tokens[-1] == tokenizer.eos_token_id


# --- limits


def test_long_response_is_cut_and_a_long_prompt_dropped():
    examples = [example("abc", "d"), example("abc", "de"), example("abcd", "e"), example("abcde", "f")]
    store = tokenise(examples, byte_tokenizer(), 5)
    assert documents(store) == [([*ids("abcd"), EOS], 3), (ids("abcde"), 3), (ids("abcde"), 4)]
    assert store.counts == TokenCounts(examples=4, documents=3, tokens=15, truncated=2, split=0, dropped=1)


def test_long_text_without_prompt_is_cut_into_pieces():
    examples = [example("", "abcdefg"), example("", "abcdefgh"), example("", "abc"), example("", "abcde")]
    store = tokenise(examples, byte_tokenizer(), 4)
    # abcdefgh + eos leaves a piece of one token, which has nothing to predict
    pieces = ["abcd", "efg.", "abcd", "efgh", "abc.", "abcd", "e."]
    assert documents(store) == [([EOS if c == "." else BYTE0 + ord(c) for c in piece], 0) for piece in pieces]
    assert store.counts == TokenCounts(examples=4, documents=7, tokens=26, truncated=0, split=3, dropped=0)


def test_bos_is_in_the_first_piece_alone():
    store = tokenise([example("", "abcdef")], byte_tokenizer(bos=True), 4)
    assert documents(store) == [([BOS, *ids("abc")], 1), ([*ids("def"), EOS], 0)]


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match="max_length 4: raise it"):
        tokenise([example("abcd", "e")] * 2, byte_tokenizer(), 4)


def test_many_examples_keep_their_order():
    examples = [example(str(i), str(-i)) for i in range(2500)]  # more than two chunks
    store = tokenise(examples, byte_tokenizer(), 50)
    assert [tokens for tokens, _ in documents(store)] == [[*ids(f"{i}{-i}"), EOS] for i in range(2500)]


# --- cache


@pytest.fixture
def builds(monkeypatch):
    """How often something was tokenised."""
    calls = []
    build = tokenize_module._build
    monkeypatch.setattr(tokenize_module, "_build", lambda *a: calls.append(1) or build(*a))
    return calls


def test_cache_hit_and_misses(tmp_path, builds):
    examples = [example("a", "b"), example("", "c" * 30)]
    first = tokenise(examples, byte_tokenizer(), 20, tmp_path)
    second = tokenise([example("a", "b"), example("", "c" * 30)], byte_tokenizer(), 20, tmp_path)
    assert len(builds) == 1
    assert documents(first) == documents(second)
    assert (first.counts, first.key) == (second.counts, second.key)
    assert isinstance(second.tokens, np.memmap)
    assert (second.tokens.dtype, second.offsets.dtype, second.prompt_lengths.dtype) == (np.int32, np.int64, np.int32)
    tokenise(examples, byte_tokenizer(), 21, tmp_path)
    tokenise([example("ab", ""), examples[1]], byte_tokenizer(), 20, tmp_path)  # the boundary alone moved
    tokenise(examples, byte_tokenizer(merges=(("a", "b"),)), 20, tmp_path)
    tokenise(examples, byte_tokenizer(bos=True), 20, tmp_path)
    assert len(builds) == 5
    assert len(list(tmp_path.iterdir())) == 5  # and no temporary folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "tokens.npy").write_bytes((folder / "tokens.npy").read_bytes()[:-4]),
        lambda folder: (folder / "offsets.npy").write_bytes(b""),
        lambda folder: (folder / "prompt_lengths.npy").unlink(),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    ],
)
def test_damaged_cache_is_built_again(tmp_path, builds, damage):
    examples = [example("a", "b"), example("", "cd")]
    wanted = documents(tokenise(examples, byte_tokenizer(), 20, tmp_path))
    [folder] = tmp_path.iterdir()
    damage(folder)
    assert documents(tokenise(examples, byte_tokenizer(), 20, tmp_path)) == wanted
    assert documents(tokenise(examples, byte_tokenizer(), 20, tmp_path)) == wanted
    assert len(builds) == 2
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("damaged", [False, True])
def test_simultaneous_builders_all_get_the_data(tmp_path, damaged):
    built = tokenise([example("a", "b")], byte_tokenizer(), 20)
    if damaged:
        (tmp_path / built.key).mkdir()
        (tmp_path / built.key / "meta.json").write_text("?")
    together = threading.Barrier(6)
    stores = []

    def build():
        together.wait(timeout=10)  # all have found nothing in the cache by now
        return built

    threads = [
        threading.Thread(target=lambda: stores.append(open_or_build(tmp_path, built.key, build))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [documents(store) for store in stores] == [documents(built)] * 6
    assert [path.name for path in tmp_path.iterdir()] == [built.key]


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"can't write the token cache in .*file/cache: .*choose another folder"):
        tokenise([example("a", "b")], byte_tokenizer(), 20, tmp_path / "file" / "cache")


# --- loading a tokenizer


def test_load_json_file_and_folder(tmp_path):
    byte_backend().save(str(tmp_path / "tiny.json"))
    tokenizer = load_tokenizer(str(tmp_path / "tiny.json"))
    assert (tokenizer.eos_token_id, pad_id(tokenizer)) == (EOS, PAD)
    llama_tokenizer().save_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    assert tokenizer.pad_token_id is None
    assert pad_id(tokenizer) == tokenizer.eos_token_id == EOS
    assert prefix_tokens(tokenizer) == [BOS]


def test_tokenizer_without_eos(tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=byte_backend()).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=r"no end-of-text token.*eos_token"):
        load_tokenizer(str(tmp_path / "model"))
    Backend(models.BPE({"a": 0}, [])).save(str(tmp_path / "tiny.json"))
    with pytest.raises(ModelError, match="lacks <eos> or <pad>"):
        load_tokenizer(str(tmp_path / "tiny.json"))


def test_no_tokenizer(tmp_path: Path):
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "absent": "does not exist",
        "absent.gguf": "does not exist",
        "absent.json": "not a tokenizer.json",
        "notes.json": "not a tokenizer.json",
        "empty": "no tokenizer in",
    }.items():
        with pytest.raises(ModelError, match=message):
            load_tokenizer(str(tmp_path / name))
