"""Token ids of a data set in memory-mapped files, written once per content."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from wmtp.errors import DataError

_ARRAYS = {"tokens": np.int32, "offsets": np.int64, "prompt_lengths": np.int32}


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What became of the examples.

    Attributes:
        examples: how many there were.
        documents: how many the store holds (a long text without a prompt becomes several).
        tokens: of all documents together.
        truncated: examples whose response was cut at `max_length`.
        split: examples without a prompt that were cut into several documents.
        dropped: examples left out, because the prompt alone fills `max_length`.
    """

    examples: int
    documents: int
    tokens: int
    truncated: int
    split: int
    dropped: int


@dataclass(frozen=True, slots=True, eq=False)
class TokenStore:
    """N documents as token ids, one after another.

    Attributes:
        key: hash of the content; two stores with the same key are the same.
        tokens: [all tokens] int32.
        offsets: [N+1] int64; document i is tokens[offsets[i]:offsets[i+1]].
        prompt_lengths: [N] int32, how many of a document's tokens are its prompt.
        counts: what became of the examples.
    """

    key: str
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    prompt_lengths: NDArray[np.int32]
    counts: TokenCounts

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] int64, tokens of each document."""
        return np.diff(self.offsets)

    def document(self, index: int) -> tuple[NDArray[np.int32], int]:
        """Token ids of a document, and how many of them are its prompt."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]], int(self.prompt_lengths[index])


def open_or_build(folder: Path, key: str, build: Callable[[], TokenStore]) -> TokenStore:
    """The store `key` from `folder`, built and kept there if it is absent or damaged.

    Processes may do this at the same time: each writes a folder of its own, and renames it when complete.

    Raises:
        DataError: `folder` can't be written.
    """
    final = folder / key
    if (store := _open(final)) is not None:
        return store
    built = build()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
            new = Path(temporary) / key
            _write(built, new)
            store = _open(new)  # before the rename: what is mapped stays valid, whoever replaces the folder
            assert store is not None, "a store just written reads back"
            _publish(new, final)
    except OSError as error:
        raise DataError(
            f"can't write the token cache in {folder}: {error}; free space or choose another folder"
        ) from error
    return store


def _publish(new: Path, final: Path) -> None:
    for last in (False, True):
        try:
            new.rename(final)
            return
        except OSError:  # not empty: another process was faster, or it is the damaged one
            if _open(final) is not None:
                return
            if last:
                raise
            shutil.rmtree(final, ignore_errors=True)


def _write(store: TokenStore, folder: Path) -> None:
    folder.mkdir()
    for name, dtype in _ARRAYS.items():
        np.save(folder / f"{name}.npy", np.asarray(getattr(store, name), dtype=dtype))
    sizes = {name: (folder / f"{name}.npy").stat().st_size for name in _ARRAYS}
    (folder / "meta.json").write_text(json.dumps({"counts": asdict(store.counts), "sizes": sizes}))


def _open(folder: Path) -> TokenStore | None:
    """The store in `folder`; none if there is none, or a damaged one."""
    try:
        meta = cast("dict[str, dict[str, int]]", json.loads((folder / "meta.json").read_text()))
        if any((folder / f"{name}.npy").stat().st_size != size for name, size in meta["sizes"].items()):
            return None
        tokens, offsets, prompt_lengths = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
        return TokenStore(folder.name, tokens, offsets, prompt_lengths, TokenCounts(**meta["counts"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
