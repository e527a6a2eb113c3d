"""From examples to token ids, with any fast tokenizer that `transformers` loads.

A document is  [what the tokenizer puts before every text, e.g. bos]  prompt  response  eos.  Prompt and
response are tokenised apart, so that the boundary between them is exact and the prompt has the very tokens that
it has when given alone to generate from. A tokenizer that puts a space before each text (Llama 2's) would put
one into the middle; there the response is tokenised behind a newline, whose tokens are taken off again. Names of
special tokens in a text become those tokens, as always in `transformers`, so that chat markers in a prompt work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, processors
from transformers import AutoTokenizer, LlamaTokenizerFast, PreTrainedTokenizerFast

from wmtp.data.cache import TokenCounts, TokenStore, open_or_build
from wmtp.data.sources import Example
from wmtp.errors import DataError, ModelError

Tokenizer: TypeAlias = PreTrainedTokenizerFast

FORMAT = 1
"""Part of the cache's key: add one when the same examples give other tokens than before."""

_CHUNK = 1024  # examples per call: enough for the tokenizer's threads, little memory
_COMPARED = 200
_ODD = (" ", "  a  b ", "\n\n\ta\n  b", "1234 5", "ﬁ １ é e\u0301 …", "日本 😀", "\u00a0x\u200b", "A\r\nB")


def load_tokenizer(location: str, gguf_file: str | None = None) -> Tokenizer:
    """The tokenizer of a model folder, a `.gguf` file, a hub id, a Llama 2 `tokenizer.model`, or a lone `.json`.

    The `.json` is to have `<eos>` and `<pad>`.

    Args:
        location: the file, folder or hub id.
        gguf_file: name of the GGUF file within `location`, where that is a folder or hub id.

    Raises:
        ModelError: none there, not a fast one, or without an end-of-text token.
    """
    path = Path(location)
    if path.suffix == ".json":
        return _from_json(path)
    if path.suffix == ".model":
        return _from_sentencepiece(path)
    if path.suffix == ".gguf":
        location, gguf_file = str(path.parent), path.name
    if path.is_absolute() and not path.exists():
        raise ModelError(f"{path} does not exist")
    options = {"gguf_file": gguf_file} if gguf_file else {}
    load = cast("Any", AutoTokenizer).from_pretrained
    try:
        tokenizer: object = load(location, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"no tokenizer in {location!r}: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{location!r} has no fast tokenizer: save one as tokenizer.json beside the model")
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {location!r} has no end-of-text token, so generation would never end: "
            'name one of its tokens as "eos_token" in tokenizer_config.json'
        )
    return tokenizer


def _from_json(path: Path) -> Tokenizer:
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not a tokenizer.json: {error!r}") from error
    backend = Backend.from_file(str(path))
    if backend.token_to_id("<eos>") is None or backend.token_to_id("<pad>") is None:
        raise ModelError(
            f"{path} ({model.get('type')}) lacks <eos> or <pad>: give the folder with tokenizer_config.json"
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def _from_sentencepiece(path: Path) -> Tokenizer:
    """As Meta's code reads it: bos, then the text behind a space, even one that begins with a space."""
    cure = "or put the same tokenizer as tokenizer.json and tokenizer_config.json beside it"
    try:
        # transformers reads a file that was cut short as a smaller one; the library itself says what is wrong.
        checked: Any = import_module("sentencepiece").SentencePieceProcessor(model_file=str(path))
        loaded: Any = cast("Any", LlamaTokenizerFast).from_pretrained(path.parent)
    except ImportError as error:
        raise ModelError(f"{path}: needs the package sentencepiece ({error}): pip install it, {cure}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: not a SentencePiece model that can be read ({error}); copy it again") from error
    if min(checked.bos_id(), checked.eos_id(), checked.unk_id()) < 0:
        raise ModelError(f"{path}: has no token for a text's begin, its end or what is unknown; {cure[3:]}")
    bos, eos, unk = (checked.id_to_piece(i) for i in (checked.bos_id(), checked.eos_id(), checked.unk_id()))
    backend: Backend = loaded.backend_tokenizer
    # The library's own puts no space before a text that begins with one: indented code would get other tokens.
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, checked.bos_id())])
    odd = next(
        (t for t in _probes(checked) if backend.encode(t, add_special_tokens=False).ids != checked.encode(t)), ""
    )
    if odd:
        raise ModelError(f"{path}: of another kind than Llama's, {odd[:20]!r} would get other tokens; {cure[3:]}")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token=unk)


def _probes(original: Any) -> list[str]:
    """Every piece of a SentencePiece model, alone and among others, and odd texts."""
    ids = [i for i in range(original.get_piece_size()) if not (original.is_control(i) or original.is_byte(i))]
    words = [cast("str", original.id_to_piece(i)).replace("▁", " ") for i in ids if not original.is_unknown(i)]
    return [*_ODD, *words, *("".join(words[at::97]) for at in range(97))]


def check_same_tokens(own: Tokenizer, other: Tokenizer, examples: Sequence[Example], key: str) -> None:
    """`ModelError` with an example unless both tokenizers read the texts alike.

    Args:
        own: the trained model's.
        other: that of the model which `key` names.
        examples: real texts; the first `_COMPARED` are read.
        key: a setting and its value, for the message.
    """
    for prefix, texts in (("prompt", [e.prompt for e in examples]), ("response", [e.response for e in examples])):
        some = [text for text in texts[:_COMPARED] if text]
        for text, ours, theirs in zip(some, prompt_tokens(some, own), prompt_tokens(some, other), strict=True):
            if ours != theirs:
                at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
                raise ModelError(
                    f"{key}: reads text with other tokens than paths.models.base: of the {prefix} {text[:40]!r} token "
                    f"{at} is {ours[at : at + 1]} for one and {theirs[at : at + 1]} for the other; "
                    "take a model with the same tokenizer"
                )


def pad_id(tokenizer: Tokenizer) -> int:
    """The id to fill rows with. May be eos: what is padding is told by `Batch.documents`, never by the id."""
    return cast("int", tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def prefix_tokens(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before every text: bos, or nothing."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = cast("list[int]", encoded["input_ids"]), cast("list[int]", encoded["special_tokens_mask"])
    return ids[: special.index(0)]


def prompt_tokens(prompts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each prompt, as a document begins with them in training."""
    prefix = prefix_tokens(tokenizer)
    return [[*prefix, *ids] for ids in _ids(prompts, tokenizer)]


def _ids(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    if not texts:
        return []  # the library fails on nothing
    # verbose=False: no warning about texts longer than the model's window, they are cut afterwards.
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return cast("list[list[int]]", encoded["input_ids"])


def tokenise(
    examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, cache: Path | None = None
) -> TokenStore:
    """Every example as a document of at most `max_length` tokens; from the folder `cache` if it is there.

    A response too long is cut at the end and has no eos then. An example whose prompt fills `max_length` is
    dropped. A text without a prompt is cut into consecutive documents, and a last one of a single token,
    which has no target, is left off. So every document has a target, and the counts tell what became of all.

    Raises:
        DataError: nothing is left, or the cache can't be written.
    """
    assert max_length >= 2, "a document of one token has no target"
    prefix = prefix_tokens(tokenizer)  # first, since a call resets truncation and padding, which are part of the hash
    key = _content_key(examples, tokenizer, prefix, max_length)

    def build() -> TokenStore:
        return _build(examples, tokenizer, prefix, max_length, key)

    return build() if cache is None else open_or_build(cache, key, build)


def _content_key(examples: Sequence[Example], tokenizer: Tokenizer, prefix: list[int], max_length: int) -> str:
    settings = [FORMAT, max_length, prefix, tokenizer.eos_token_id, tokenizer.backend_tokenizer.to_str()]
    digest = sha256(json.dumps(settings).encode())
    for example in examples:
        prompt, response = example.prompt.encode(), example.response.encode()
        digest.update(b"%d %d " % (len(prompt), len(response)) + prompt + response)
    return digest.hexdigest()[:32]


def _build(
    examples: Sequence[Example], tokenizer: Tokenizer, prefix: list[int], max_length: int, key: str
) -> TokenStore:
    arrays: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    prompt_lengths: list[int] = []
    truncated = split = dropped = 0
    eos = cast("int", tokenizer.eos_token_id)
    for prompt, response in _encode(examples, tokenizer):
        start = len(prefix) + len(prompt)
        ids = [*prefix, *prompt, *response, eos]
        if prompt and start >= max_length:
            dropped += 1
            continue
        if prompt:
            truncated += len(ids) > max_length
            ids = ids[:max_length]
        elif len(ids) > max_length:
            split += 1
            ids = ids[:-1] if len(ids) % max_length == 1 else ids
        pieces = [min(max_length, len(ids) - at) for at in range(0, len(ids), max_length)]
        arrays.append(np.array(ids, dtype=np.int32))
        lengths += pieces
        prompt_lengths += [start, *[0] * (len(pieces) - 1)]
    if not lengths:
        raise DataError(
            f"all {len(examples)} examples have a prompt that alone fills max_length {max_length}: raise it"
        )
    counts = TokenCounts(len(examples), len(lengths), sum(lengths), truncated, split, dropped)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenStore(key, np.concatenate(arrays), offsets, np.array(prompt_lengths, dtype=np.int32), counts)


def _encode(examples: Sequence[Example], tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each example's prompt and response, without special tokens."""
    [letter] = _ids(["a"], tokenizer)
    pair = tokenizer.backend_tokenizer.decode(letter + letter)
    lead = "" if pair == "aa" else "\n"  # "a a": it puts a space before each text
    [lead_ids] = _ids([lead], tokenizer)
    for at in range(0, len(examples), _CHUNK):
        chunk = examples[at : at + _CHUNK]
        prompts = _ids([e.prompt for e in chunk], tokenizer)
        responses = _ids([lead + e.response if e.prompt else e.response for e in chunk], tokenizer)
        for example, prompt, response in zip(chunk, prompts, responses, strict=True):
            skip = len(lead_ids) if example.prompt else 0
            if skip and response[:skip] != lead_ids:
                raise ModelError(
                    "this tokenizer puts a space before a text and merges newlines: no exact response tokens"
                )
            yield prompt, response[skip:]
