"""Folders of Meta's form (see `wmtp.model.meta`) on disk: checked to the last name and shape, read as asked for."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from wmtp.errors import ModelError
from wmtp.model.meta import DTYPES, ROPE, Origin, Weight, halves, llama_config, weights_of

PARAMS_FILE = "params.json"
WEIGHTS_FILE = "consolidated.pth"
TOKENIZER_FILE = "tokenizer.model"


@dataclass(frozen=True)
class MetaCheckpoint:
    """A folder of this form, checked; its weights stay in the file until they are asked for.

    Attributes:
        folder: where it is.
        config: settings for a `transformers.LlamaConfig`, the trunk's.
        horizon: H, head 1 (the trunk's last layer) included.
        origin: see `Origin`.
    """

    folder: Path
    config: dict[str, Any]
    horizon: int
    origin: Origin
    _weights: list[Weight]
    _tensors: Mapping[str, Tensor]

    def weights(self, part: str = "") -> Iterator[tuple[str, Tensor]]:
        """Name in an `MTPModel`'s state dict and value, in the file's dtype, one after the other.

        Values lie in the file's mapped memory, but for wq and wk, which are copied as their rows change places.

        Args:
            part: only names that begin so (`trunk.lm.`, `heads.`), and without it.
        """
        for weight in self._weights:
            if weight.name.startswith(part):
                yield weight.name.removeprefix(part), halves(self._tensors[weight.key], weight.turned)


def is_meta(folder: Path) -> bool:
    """Whether `folder` is of this form."""
    return (folder / PARAMS_FILE).is_file() and any(folder.glob("consolidated*.pth"))


def open_meta(folder: Path) -> MetaCheckpoint:
    """The checkpoint in `folder`.

    Raises:
        ModelError: a file is damaged or divided into parts, or weights and `params.json` don't fit each other.
    """
    params = _read_params(folder / PARAMS_FILE)
    files = sorted(folder.glob("consolidated*.pth"))
    if len(files) > 1:
        raise ModelError(
            f"{folder}: {len(files)} files {files[0].name} to {files[-1].name}: the weights are divided for model "
            f"parallelism, which is not supported; join them into one {WEIGHTS_FILE}"
        )
    tensors = _read_weights(files[0])
    table = tensors.get("tok_embeddings.weight")
    try:
        config = llama_config(params, vocabulary=None if table is None else table.shape[0])
    except ModelError as error:
        raise ModelError(f"{folder / PARAMS_FILE}: {error}") from error
    horizon = int(params.get("n_future_tokens", 1))
    weights = weights_of(config, horizon)
    rope = tensors.pop(ROPE, None)
    _check(files[0], tensors, weights)
    if rope is not None:
        _check_rope(files[0], rope, config)
    return MetaCheckpoint(folder, config, horizon, _origin(params, tensors, rope), weights, tensors)


def write_meta_form(folder: Path, params: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files into `folder`."""
    (folder / PARAMS_FILE).write_text(json.dumps(params) + "\n", encoding="utf-8")
    torch.save(tensors, folder / WEIGHTS_FILE)


def tokenizer_of(folder: Path) -> Path:
    """Where the tokenizer of a folder of this form is: a folder with a `tokenizer.json`, or a `tokenizer.model` file.

    Raises:
        ModelError: neither in the folder nor in the one above it, where the published models have theirs.
    """
    for place in (folder, folder.parent):
        for name, found in (("tokenizer.json", place), (TOKENIZER_FILE, place / TOKENIZER_FILE)):
            if (place / name).is_file():
                return found
    raise ModelError(f"{folder}: no tokenizer.json or {TOKENIZER_FILE} there or in the folder above; copy it there")


def _read_params(file: Path) -> dict[str, Any]:
    try:
        params = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: not JSON: {error}") from error
    if not isinstance(params, dict):
        raise ModelError(f"{file}: not a mapping of names to values")
    return cast("dict[str, Any]", params)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        # weights_only runs no code of the file. Files from before torch 1.6 are not zip files and can't be mapped.
        found: object = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{file}: not a file of weights that can be read: {error}") from error
    tensors = cast("dict[object, object]", found) if isinstance(found, dict) else {}
    odd = [key for key, value in tensors.items() if not isinstance(value, Tensor) or value.dtype not in DTYPES.values()]
    if odd or not tensors:
        what = f"{odd[0]!r} is no tensor of {', '.join(DTYPES)}" if odd else "it holds no mapping of names to tensors"
        raise ModelError(f"{file}: {what}")
    return cast("dict[str, Tensor]", dict(tensors))


def _check(file: Path, tensors: Mapping[str, Tensor], weights: list[Weight]) -> None:
    """`ModelError` unless these are the weights, each of its shape."""
    expected = {weight.key: weight.shape for weight in weights}
    missing = [key for key in expected if key not in tensors]
    unknown = [key for key in tensors if key not in expected]
    other = [key for key in expected if key in tensors and tuple(tensors[key].shape) != expected[key]]
    told = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys]
    if other:
        shapes = f"{tuple(tensors[other[0]].shape)}, not {expected[other[0]]}"
        told.append(f"{len(other)} of another shape: {_some(other)} ({other[0]} is {shapes})")
    if told:
        raise ModelError(f"{file}: not the weights that {PARAMS_FILE} beside it describes: {'; '.join(told)}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", .." if len(keys) > 3 else "")


def _check_rope(file: Path, rope: Tensor, config: Mapping[str, Any]) -> None:
    """`ModelError` unless the file's frequencies are those of `rope_theta`, as far as half precision can tell."""
    theta, size = config["rope_parameters"]["rope_theta"], config["hidden_size"] // config["num_attention_heads"]
    expected = theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    if rope.shape != expected.shape or not torch.allclose(rope.float(), expected, rtol=1e-2, atol=1e-6):
        raise ModelError(f"{file}: {ROPE} is not what rope_theta {theta} of {PARAMS_FILE} gives; mend {PARAMS_FILE}")


def _origin(params: dict[str, Any], tensors: Mapping[str, Tensor], rope: Tensor | None) -> Origin:
    dtypes = {key: str(value.dtype).removeprefix("torch.") for key, value in tensors.items()}
    if rope is not None:
        dtypes[ROPE] = str(rope.dtype).removeprefix("torch.")
    usual = Counter(dtypes.values()).most_common(1)[0][0]
    others = {key: dtype for key, dtype in dtypes.items() if dtype != usual}
    values: Origin = {} if rope is None else {"rope": rope.tolist()}
    return {"params": params, "dtype": usual, "other_dtypes": others, **values}
