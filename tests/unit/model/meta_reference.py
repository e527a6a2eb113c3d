"""A small Llama of several heads in Meta's form, written from the description of the form and not from our code.

Rotary embeddings turn neighbouring pairs of each attention head as complex numbers; the last of `layers` and each of
`extra_heads` take the same hidden state; `norm` and `output` are shared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PARAMS: dict[str, Any] = {
    "dim": 64,
    "n_layers": 7,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 128,
    "multiple_of": 32,
    "norm_eps": 1e-5,
    "rope_theta": 500.0,
    "n_future_tokens": 4,
}
WIDTH = 192  # 2/3 of 4 * 64 is 170, rounded up to a multiple of 32


def make_weights(params: dict[str, Any], width: int, seed: int = 0) -> dict[str, Tensor]:
    """Random weights by their names in the form."""
    generator = torch.Generator().manual_seed(seed)
    dim, vocabulary, extra = params["dim"], params["vocab_size"], params.get("n_future_tokens", 1) - 1
    of_kv = dim // params["n_heads"] * (params.get("n_kv_heads") or params["n_heads"])
    names = [f"layers.{i}" for i in range(params["n_layers"] - extra)] + [f"extra_heads.{i}" for i in range(extra)]
    shapes = {"tok_embeddings": (vocabulary, dim), "norm": (dim,), "output": (vocabulary, dim)}
    for name in names:
        shapes |= {f"{name}.attention.{w}": (dim, dim) for w in ("wq", "wo")}
        shapes |= {f"{name}.attention.{w}": (of_kv, dim) for w in ("wk", "wv")}
        shapes |= {f"{name}.feed_forward.{w}": (width, dim) for w in ("w1", "w3")}
        shapes |= {f"{name}.feed_forward.w2": (dim, width)}
        shapes |= {f"{name}.{w}": (dim,) for w in ("attention_norm", "ffn_norm")}
    return {
        f"{name}.weight": torch.randn(shape, generator=generator) * 0.15 + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in shapes.items()
    }


def write_folder(folder: Path, params: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params))
    torch.save(weights, folder / "consolidated.pth")
    return folder


def head_logits(params: dict[str, Any], weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """[B,S,H,V] fp64 logits of [B,S] tokens, each row one text."""
    w = {name: value.double() for name, value in weights.items()}
    extra = params.get("n_future_tokens", 1) - 1
    layers = [f"layers.{i}" for i in range(params["n_layers"] - extra)]
    hidden = w["tok_embeddings.weight"][tokens]
    for layer in layers[:-1]:
        hidden = _block(params, w, layer, hidden)
    heads = [layers[-1], *(f"extra_heads.{i}" for i in range(extra))]
    stacked = torch.stack([_block(params, w, head, hidden) for head in heads], dim=-2)
    return _norm(params, stacked, w["norm.weight"]) @ w["output.weight"].T


def _norm(params: dict[str, Any], x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + params["norm_eps"]).sqrt() * weight


def _rotate(params: dict[str, Any], x: Tensor) -> Tensor:
    """[B,S,heads,d]: pair i of position p is turned by p * theta^(-2i/d)."""
    size = x.shape[-1]
    speed = params.get("rope_theta", 10000.0) ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * speed
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(-2)


def _block(params: dict[str, Any], w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    B, S, dim = x.shape
    heads = params["n_heads"]
    kv_heads = params.get("n_kv_heads") or heads
    size = dim // heads
    normed = _norm(params, x, w[f"{name}.attention_norm.weight"])
    q = _rotate(params, (normed @ w[f"{name}.attention.wq.weight"].T).view(B, S, heads, size))
    k = _rotate(params, (normed @ w[f"{name}.attention.wk.weight"].T).view(B, S, kv_heads, size))
    v = (normed @ w[f"{name}.attention.wv.weight"].T).view(B, S, kv_heads, size)
    out = torch.zeros(B, S, heads, size, dtype=x.dtype)
    for head in range(heads):
        shared = head // (heads // kv_heads)
        scores = q[:, :, head] @ k[:, :, shared].transpose(1, 2) / size**0.5
        scores = scores.masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -torch.inf)
        out[:, :, head] = scores.softmax(-1) @ v[:, :, shared]
    x = x + out.reshape(B, S, dim) @ w[f"{name}.attention.wo.weight"].T
    normed = _norm(params, x, w[f"{name}.ffn_norm.weight"])
    gate, up = (normed @ w[f"{name}.feed_forward.{part}.weight"].T for part in ("w1", "w3"))
    return x + (gate * torch.sigmoid(gate) * up) @ w[f"{name}.feed_forward.w2.weight"].T
