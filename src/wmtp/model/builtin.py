"""What `builtin:tiny` is made of: plain settings and a tokenizer file, for `wmtp.model.pretrained` to build from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

BUILTIN_TINY = "builtin:tiny"
"""Name of the embedded model."""

PAD, EOS = "<pad>", "<eos>"
"""The tokenizer's special tokens; their ids are 0 and 1."""


def tiny_config() -> dict[str, int | float | bool]:
    """Settings for a `transformers.LlamaConfig`."""
    return {
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }


def tokenizer_file() -> Path:
    """The tokenizer's JSON file (a `tokenizers` BPE); `benchmarks/make_tiny_tokenizer.py` makes it."""
    return Path(str(resources.files("wmtp.model") / "tiny_tokenizer.json"))
