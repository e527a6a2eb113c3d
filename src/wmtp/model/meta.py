"""Meta's own form of a Llama that predicts several tokens: a folder with `params.json` and `consolidated.pth`.

The form is that of the published multi-token-prediction checkpoints (Gloeckle et al. 2024, arXiv 2404.19737), and with
`n_future_tokens` 1 or absent that of Llama 2. Layers and heads count together: with `n_layers` 32 and
`n_future_tokens` 4 there are `layers.0` to `layers.28`, the last of which is the head for the next token, and
`extra_heads.0` to `.2`, which stand beside it. All share `norm` and `output`.

Rotary embeddings turn neighbouring rows of wq and wk as pairs there; transformers pairs a head's first half with its
second. So these rows change places, within each attention head, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from wmtp.errors import ModelError

Origin: TypeAlias = "dict[str, Any]"
"""What a file of this form holds beyond the weights' values, as JSON, so that they can be saved as they were."""

_KNOWN = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
    "rope_theta", "n_future_tokens", "max_seq_len", "max_batch_size",
}  # fmt: skip
ROPE = "rope.freqs"  # a buffer that follows from rope_theta, which some checkpoints hold
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BLOCK = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight's name there and here, its shape, and the attention heads whose rows change places (0: none do)."""

    key: str
    name: str
    shape: tuple[int, ...]
    turned: int = 0


def llama_config(params: Mapping[str, Any], *, vocabulary: int | None = None) -> dict[str, Any]:
    """Settings for a `transformers.LlamaConfig`: the trunk, head 1 its last layer.

    Args:
        params: content of `params.json`.
        vocabulary: V where `params` leave it open (Llama 2's say -1).

    Raises:
        ModelError: a value is missing or out of range, or may change the computation in a way not known here. The
            message says which.
    """
    strange = sorted(key for key in params.keys() - _KNOWN if params[key] not in (None, False))
    if strange:
        raise ModelError(
            f"{', '.join(strange)}: what this means for the computation is not known to wmtp; if it means nothing, "
            "take it out"
        )
    given = {key: value for key, value in params.items() if value is not None}
    dim, total, heads = (_whole(given, key) for key in ("dim", "n_layers", "n_heads"))
    kv_heads, future = _whole(given, "n_kv_heads", heads), _whole(given, "n_future_tokens", 1)
    if given.get("vocab_size", -1) == -1:
        given["vocab_size"] = vocabulary
    if dim % heads or dim // heads % 2 or heads % kv_heads or future > total:
        raise ModelError(
            f"dim {dim}, n_heads {heads}, n_kv_heads {kv_heads}, n_layers {total} and n_future_tokens {future} make "
            "no Llama: dim is n_heads times an even number, n_heads a multiple of n_kv_heads, and each head is a layer"
        )
    return {
        "vocab_size": _whole(given, "vocab_size"),
        "hidden_size": dim,
        "intermediate_size": _ffn_width(dim, _whole(given, "multiple_of", 256), _real(given, "ffn_dim_multiplier", 1)),
        "num_hidden_layers": total - future + 1,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        # The published files do not say how long a text may be; 4,096 tokens is Llama 2's.
        "max_position_embeddings": _whole(given, "max_seq_len", 4096),
        "rms_norm_eps": _real(given, "norm_eps", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": _real(given, "rope_theta", 10000.0)},
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def meta_form(
    config: Mapping[str, Any], horizon: int, weights: Mapping[str, Tensor], origin: Origin | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content of `params.json` and `consolidated.pth` for a model, in the dtypes that it came in, else in its own.

    Args:
        config: the trunk's `transformers.LlamaConfig` as a dict.
        horizon: H.
        weights: state dict of the `MTPModel`, whose extra heads are of kind transformer.
        origin: of the file that the model came from, if it came from one of this form.

    Raises:
        ModelError: a computation that this form can't say. The message says which.
    """
    _check_sayable(config)
    origin = origin or {"params": _params_of(config), "dtype": None, "other_dtypes": {}}
    params: dict[str, Any] = dict(origin["params"])
    if params.get("n_future_tokens", 1) != horizon:
        params |= {"n_layers": int(config["num_hidden_layers"]) + horizon - 1, "n_future_tokens": horizon}

    def stored(weight: Weight) -> Tensor:
        value = _pairs(weights[weight.name].detach(), weight.turned)
        dtype = origin["other_dtypes"].get(weight.key, origin["dtype"])
        # A copy each: a view into something larger would be saved with all that it is a view of.
        return value.contiguous().to("cpu", DTYPES[dtype] if dtype else value.dtype, copy=True)

    tensors = {weight.key: stored(weight) for weight in weights_of(config, horizon)}
    if "rope" in origin:
        tensors[ROPE] = torch.tensor(origin["rope"], dtype=DTYPES[origin["other_dtypes"].get(ROPE, origin["dtype"])])
    return params, tensors


def weights_of(config: Mapping[str, Any], horizon: int) -> list[Weight]:
    """All weights of a Llama of these settings with H heads."""
    dim, wide = int(config["hidden_size"]), int(config["intermediate_size"])
    heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    layers, vocabulary = int(config["num_hidden_layers"]), int(config["vocab_size"])
    of_kv = dim // heads * kv_heads
    shapes = {"attention.wk": (of_kv, dim), "attention.wv": (of_kv, dim), "attention_norm": (dim,), "ffn_norm": (dim,)}
    shapes |= {"feed_forward.w1": (wide, dim), "feed_forward.w2": (dim, wide), "feed_forward.w3": (wide, dim)}
    turned = {"attention.wq": heads, "attention.wk": kv_heads}
    blocks = [(f"layers.{i}", f"trunk.lm.model.layers.{i}") for i in range(layers)]
    blocks += [(f"extra_heads.{i}", f"heads.{i}") for i in range(horizon - 1)]
    return [
        Weight("tok_embeddings.weight", "trunk.lm.model.embed_tokens.weight", (vocabulary, dim)),
        *(
            Weight(f"{there}.{key}.weight", f"{here}.{name}.weight", shapes.get(key, (dim, dim)), turned.get(key, 0))
            for there, here in blocks
            for key, name in _BLOCK.items()
        ),
        Weight("norm.weight", "trunk.lm.model.norm.weight", (dim,)),
        Weight("output.weight", "trunk.lm.lm_head.weight", (vocabulary, dim)),
    ]


def halves(rows: Tensor, heads: int) -> Tensor:
    """[heads * d, D] with rows 0 1 2 3 .. of each head in the order 0 2 4 .. 1 3 5 .."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape) if heads else rows


def _pairs(rows: Tensor, heads: int) -> Tensor:
    """What `halves` is made of."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape) if heads else rows


def _ffn_width(dim: int, multiple_of: int, multiplier: float) -> int:
    """Width of the feed-forward layers, rounded as the reference code does it."""
    return -(-int(multiplier * int(2 * 4 * dim / 3)) // multiple_of) * multiple_of


def _params_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """`params.json` of a trunk that did not come with one, for one head."""
    dim, wide = int(config["hidden_size"]), int(config["intermediate_size"])
    usual = _ffn_width(dim, 1, 1)
    return {
        "dim": dim,
        "n_layers": int(config["num_hidden_layers"]),
        "n_heads": int(config["num_attention_heads"]),
        "n_kv_heads": int(config["num_key_value_heads"]),
        "vocab_size": int(config["vocab_size"]),
        "multiple_of": wide,  # the width rounded up to: any is, to itself, once the multiplier has it small enough
        "ffn_dim_multiplier": None if usual <= wide else wide / usual,
        "norm_eps": float(config["rms_norm_eps"]),
        "rope_theta": float(config["rope_parameters"]["rope_theta"]),
        "n_future_tokens": 1,
    }


def _check_sayable(config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if kind != "llama":
        raise ModelError(f"a model of kind {kind}, while this form is for Llama models alone")
    usual = {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": int(config["hidden_size"]) // int(config["num_attention_heads"]),
        "rope_type": "default",
    }
    strange = [key for key, value in usual.items() if {**config, **config["rope_parameters"]}.get(key, value) != value]
    if strange:
        raise ModelError(f"{', '.join(strange)}: not as in the Llama that this form is for")


def _whole(given: Mapping[str, Any], key: str, usual: int | None = None) -> int:
    value = given.get(key, usual)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{key} is {value!r}; it must be a whole number from 1" if key in given else f"no {key}")
    return value


def _real(given: Mapping[str, Any], key: str, usual: float) -> float:
    value = given.get(key, usual)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ModelError(f"{key} is {value!r}; it must be a number above 0")
    return value
