"""Making, saving and loading an `MTPModel`."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import fsspec
import torch
from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from wmtp.errors import ModelError
from wmtp.model.builtin import BUILTIN_TINY, tokenizer_file
from wmtp.model.files import HEADS_FILE, read_meta, whole_folder, write_meta
from wmtp.model.meta import Origin, meta_form
from wmtp.model.meta_file import MetaCheckpoint, is_meta, open_meta, tokenizer_of, write_meta_form
from wmtp.model.mtp import HeadKind, MTPModel
from wmtp.model.pretrained import empty_trunk, load_trunk, make_llama, save_trunk
from wmtp.model.trunk import CausalTrunk


class SavesItself(Protocol):
    """What we ask of a tokenizer here."""

    def save_pretrained(self, save_directory: str, /) -> Any:
        """Write the tokenizer's files into a folder."""
        ...


def fetch_model(location: str, cache: Path, key: str = "paths.models.base") -> str:
    """Local path of a model: `builtin:tiny`, a folder and a `.gguf` file as they are; a URL or hub id downloaded.

    Args:
        location: where it is.
        cache: folder for what is downloaded.
        key: the setting that `location` is from, for messages.

    Raises:
        ModelError: nothing there.
    """
    if location.startswith("builtin:"):
        if location != BUILTIN_TINY:
            raise ModelError(f"{location}: no such embedded model; there is {BUILTIN_TINY}")
        return location
    if Path(location).exists():
        return location
    if "://" in location:
        return _download(location, cache / "models", key)
    if location.endswith(".gguf") or location.startswith((".", "/", "~")) or location.count("/") > 1:
        raise ModelError(f"{key}: {location}: no such file or folder")
    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return snapshot_download(location, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{key}: {location}: no file or folder here, and the model hub did not give it: {error}"
        ) from error


def _download(url: str, cache: Path, key: str) -> str:
    """Copy of the file or folder at `url`, made once: its name tells one state of the source from another."""
    try:
        files, path = cast("tuple[fsspec.AbstractFileSystem, str]", fsspec.url_to_fs(url))
        listed = cast("dict[str, dict[str, Any]]", files.find(path, detail=True))
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{key}: {url}: {error}") from error
    if not listed:
        raise ModelError(f"{key}: {url}: nothing there")
    marks = ("size", "ETag", "etag", "mtime", "LastModified", "created")
    state = sorted((name, [str(info.get(mark)) for mark in marks]) for name, info in listed.items())
    name = f"{hashlib.sha256(repr((url, state)).encode()).hexdigest()[:16]}-{Path(path).name}"
    target = cache / name
    if not target.exists():
        new = target.with_name(f"{uuid.uuid4().hex}-{Path(path).name}")
        cache.mkdir(parents=True, exist_ok=True)
        files.get(path, str(new), recursive=not url.endswith(".gguf"))
        new.rename(target)
    return str(target)


def tokenizer_location(path: str) -> str:
    """Where the tokenizer of the model at `path` (as `fetch_model` gives it) is."""
    if path == BUILTIN_TINY:
        return str(tokenizer_file())
    return str(tokenizer_of(Path(path))) if is_meta(Path(path)) else path


def load_model(
    path: str,
    *,
    horizon: int | None,
    head: HeadKind = "transformer",
    detach_heads: bool = False,
    native_mtp: Literal["refuse", "drop"] = "refuse",
    seed: int = 0,
) -> MTPModel:
    """A model with `horizon` heads, fp32, on the CPU.

    Heads that wmtp saved beside the trunk are loaded with it; a plain trunk gets fresh ones.

    Args:
        path: as `fetch_model` gives it, a folder in Meta's form too.
        horizon: H; None: as saved, 1 for a plain trunk.
        head: kind of heads 2..H; without a horizon, as saved too.
        detach_heads: see `MTPModel`.
        native_mtp: see `load_trunk`.
        seed: for `builtin:tiny`'s fresh weights.

    Raises:
        ModelError: as `load_trunk`; or saved heads do not fit `horizon` and `head`: they are never dropped silently.
    """
    saved, checkpoint = _saved_heads(path)
    if horizon is None:
        horizon, head = (saved.horizon, saved.head) if saved is not None else (1, head)
    elif saved is not None and saved.horizon > 1 and (saved.horizon, saved.head) != (horizon, head):
        raise ModelError(
            f"{path}: was saved with model.horizon {saved.horizon} and model.head {saved.head}, the recipe has "
            f"{horizon} and {head}; set the recipe's to the saved ones, or take the trunk alone: wmtp export .. --to hf"
        )
    if checkpoint is None:
        trunk = load_trunk(path, native_mtp=native_mtp, seed=seed)
    else:
        trunk = make_llama(checkpoint.config, checkpoint.weights("trunk.lm."), path)
    model = MTPModel(trunk, horizon, head, detach_heads=detach_heads)
    if saved is not None:
        trunk.origin = saved.origin
        if saved.horizon > 1:
            values = load_file(Path(path) / HEADS_FILE) if checkpoint is None else dict(checkpoint.weights("heads."))
            model.heads.load_state_dict(values)
    return model


def model_skeleton(
    path: str, *, horizon: int | None, head: HeadKind = "transformer", detach_heads: bool = False
) -> MTPModel:
    """The model that `load_model` gives, without values (on the meta device)."""
    saved, checkpoint = _saved_heads(path, verify=False)
    if horizon is None:
        horizon, head = (saved.horizon, saved.head) if saved is not None else (1, head)
    with torch.device("meta"):
        trunk = empty_trunk(path, None if checkpoint is None else checkpoint.config)
        trunk.origin = None if saved is None else saved.origin
        return MTPModel(trunk, horizon, head, detach_heads=detach_heads)


@dataclass(frozen=True, slots=True)
class _Saved:
    """What a folder says of the model in it."""

    horizon: int
    head: HeadKind
    origin: Origin | None


def _saved_heads(path: str, *, verify: bool = True) -> tuple[_Saved | None, MetaCheckpoint | None]:
    """What the folder at `path` says of the model in it, if anything; it as a checkpoint in Meta's form, if it is."""
    if not Path(path).is_dir():
        return None, None
    if is_meta(Path(path)):
        checkpoint = open_meta(Path(path))
        return _Saved(checkpoint.horizon, "transformer", checkpoint.origin), checkpoint
    meta = read_meta(Path(path), verify=verify)
    return None if meta is None else _Saved(int(meta["horizon"]), meta["head"], meta.get("origin")), None


def model_of(weights: Mapping[str, Tensor], skeleton: MTPModel) -> MTPModel:
    """`skeleton` (see `model_skeleton`) with `weights`, to be saved. A value head among them is left out."""
    assert isinstance(skeleton.trunk, CausalTrunk)
    own = {name: value for name, value in weights.items() if not name.startswith("value_head.")}
    skeleton.load_state_dict(own, assign=True)
    skeleton.trunk.lm.tie_weights()
    return skeleton


def save_model(model: MTPModel, tokenizer: SavesItself, folder: Path) -> None:
    """Save trunk, heads and tokenizer to `folder`, which appears whole or not at all; an older one is replaced."""
    assert isinstance(model.trunk, CausalTrunk)
    with whole_folder(folder) as new:
        save_trunk(model.trunk, new)
        tokenizer.save_pretrained(str(new))
        if model.horizon > 1:
            save_file({k: v.contiguous() for k, v in model.heads.state_dict().items()}, new / HEADS_FILE)
        origin = {} if model.trunk.origin is None else {"origin": model.trunk.origin}
        write_meta(new, {"horizon": model.horizon, "head": model.head, **origin})


def export_trunk(model: MTPModel, tokenizer: SavesItself, folder: Path) -> None:
    """Save the trunk and the tokenizer alone: a plain Hugging Face folder, which appears whole or not at all."""
    assert isinstance(model.trunk, CausalTrunk)
    with whole_folder(folder) as new:
        save_trunk(model.trunk, new)
        tokenizer.save_pretrained(str(new))


def export_meta(model: MTPModel, tokenizer: SavesItself, folder: Path) -> None:
    """Save trunk, heads and tokenizer in Meta's form, to a folder that appears whole or not at all.

    Weights have the dtypes that they came in, if they came in this form.

    Raises:
        ModelError: a model that this form can't say.
    """
    trunk = model.trunk
    assert isinstance(trunk, CausalTrunk)
    try:
        if model.horizon > 1 and model.head != "transformer":
            raise ModelError(f"heads of kind {model.head}, while this form has transformer heads alone")
        config = trunk.lm.config.to_dict()
        params, tensors = meta_form(config, model.horizon, model.state_dict(), trunk.origin)
    except ModelError as error:
        raise ModelError(f"{trunk.name}: can't be written in Meta's form: {error}; use --to hf") from error
    with whole_folder(folder) as new:
        write_meta_form(new, params, tensors)
        tokenizer.save_pretrained(str(new))
