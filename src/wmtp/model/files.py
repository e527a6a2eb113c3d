"""Model folders on disk: where one is, and which weights it holds.

A model saved by wmtp is a plain Hugging Face folder (the trunk), so that any tool reads it, with two files more:
`mtp_heads.safetensors` (heads 2..H) and `wmtp.json` (format, horizon, kind of head, a SHA-256 of every file). Loading
verifies the hashes: a flipped bit loads silently in every common format.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wmtp.errors import ModelError

HEADS_FILE = "mtp_heads.safetensors"
META_FILE = "wmtp.json"

# DeepSeek-V3 and GLM-4.5 number the module as one more layer; Qwen3-Next and MiMo name it (research notes, 1.5).
_NATIVE_NAME = re.compile(r"(^|\.)(mtp|mtp_layers|mtp_block|nextn)\b|(^|\.)(nextn|eh_proj|enorm|hnorm)\.")
_LAYER = re.compile(r"(?:^|\.)(?:layers|blk)\.(\d+)\.")


def gguf_of(path: Path) -> tuple[Path, str | None]:
    """Folder and file name of a `.gguf` file; a folder alone as it is."""
    return (path.parent, path.name) if path.suffix == ".gguf" else (path, None)


def checkpoint_keys(path: Path) -> list[str]:
    """Names of all weights in a checkpoint, read from headers alone; empty where only the library can tell."""
    if path.suffix == ".gguf":
        # The import takes a second and is needed for this form alone.
        from gguf import GGUFReader

        try:
            return [tensor.name for tensor in GGUFReader(path).tensors]
        except (OSError, ValueError, IndexError) as error:
            raise ModelError(f"{path}: not a GGUF file that can be read: {error}") from error
    keys: list[str] = []
    for file in sorted([*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")]):
        try:
            if file.suffix == ".bin":
                # On the meta device no weight is read; weights_only runs no code of the file.
                keys += torch.load(file, map_location="meta", weights_only=True)
            elif file.name != HEADS_FILE:
                with safe_open(file, framework="pt") as tensors:  # pyright: ignore[reportUnknownVariableType]
                    keys += cast("list[str]", tensors.keys())
        except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ModelError(f"{file}: not a file of weights that can be read: {error}") from error
    return keys


def native_mtp_keys(keys: list[str], path: Path) -> list[str]:
    """Those weights that belong to a multi-token-prediction module which the checkpoint brings along."""
    layers: int | None = None
    config = path / "config.json"
    if config.is_file():
        try:
            layers = json.loads(config.read_text(encoding="utf-8")).get("num_hidden_layers")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{config}: not the description of a model: {error}") from error

    def native(key: str) -> bool:
        layer = _LAYER.search(key)
        beyond = layer is not None and layers is not None and int(layer[1]) >= layers
        return beyond or _NATIVE_NAME.search(key) is not None

    return [key for key in keys if native(key)]


def sha256(file: Path) -> str:
    """Hex digest of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names and values of all weights."""
    return _hash(module.state_dict())


def predictor_hash(model: nn.Module) -> str:
    """That of the weights that predict tokens: a value head beside them writes no program."""
    return _hash({name: x for name, x in model.state_dict().items() if not name.startswith("value_head.")})


def _hash(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(cast(Any, values.numpy()))  # a buffer, though numpy's stubs say so from Python 3.12 on alone
    return digest.hexdigest()


@contextmanager
def whole_folder(folder: Path) -> Generator[Path]:
    """A new folder to write files into, which becomes `folder` at the end of the block; an older one is replaced.

    If the block fails, nothing has changed.

    Raises:
        ModelError: the disk does not take it.
    """
    new = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        new.mkdir(parents=True)
        yield new
        for file in new.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        old = new.with_name(f"{new.name}.old")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder} can't be written: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write `wmtp.json` with `meta` and the hash of every other file in `folder`."""
    files = {f.name: sha256(f) for f in sorted(folder.iterdir()) if f.is_file() and f.name != META_FILE}
    text = json.dumps({"format": 1, **meta, "sha256": files}, indent=2)
    (folder / META_FILE).write_text(text + "\n", encoding="utf-8")


def read_meta(folder: Path, *, verify: bool = True) -> dict[str, Any] | None:
    """Content of `wmtp.json`, and with `verify` the files are as it says; None where `folder` was not saved by wmtp.

    Raises:
        ModelError: unreadable, of a later format, or a file is missing or differs from its hash.
    """
    file = folder / META_FILE
    if not file.is_file():
        if (folder / HEADS_FILE).exists():
            raise ModelError(f"{folder}: {HEADS_FILE} is here but {META_FILE} is missing; copy the whole folder")
        return None
    try:
        meta = cast("dict[str, Any]", json.loads(file.read_text(encoding="utf-8")))
        hashes = cast("dict[str, str]", meta["sha256"])
        _ = meta["horizon"], meta["head"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: damaged ({error}); copy the folder again") from error
    if meta.get("format") != 1:
        raise ModelError(f"{file}: format {meta.get('format')!r} is not known to this version of wmtp, which reads 1")
    for name, expected in hashes.items() if verify else ():
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: {name} is missing; copy the whole folder")
        if sha256(folder / name) != expected:
            raise ModelError(f"{folder / name}: differs from the hash in {META_FILE}; copy the folder again")
    return meta
