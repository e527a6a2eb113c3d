"""What `builtin:tiny` is made of: plain settings and a tokenizer file, for `wmtp.model.pretrained` to build from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

BUILTIN_TINY = "builtin:tiny"
"""Name of the embedded model."""

PAD, EOS = "<pad>", "<eos>"
"""The tokenizer's special tokens; their ids are 0 and 1."""


def tiny_config() -> dict[str, int | float | bool]:
    """Settings for a `transformers.LlamaConfig`: 2.2 M parameters, 4.2 M with three extra transformer heads.

    The best of a few sizes by held-out loss after a fixed number of tokens of the embedded tasks. What mattered most is
    the start: a deviation of 0.06 (about 1 / sqrt(width)) learns far faster than the usual 0.02.
    """
    return {
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.06,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }


def tokenizer_file() -> Path:
    """The tokenizer's JSON file (a `tokenizers` BPE); `benchmarks/make_tiny_tokenizer.py` makes it."""
    return Path(str(resources.files("wmtp.model") / "tiny_tokenizer.json"))
