"""`wmtp export`: a trained model in a form that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from wmtp.data import load_tokenizer
from wmtp.errors import UserError
from wmtp.evaluation import RECIPE
from wmtp.model import export_meta, export_trunk, load_model, tokenizer_location
from wmtp.model.builtin import BUILTIN_TINY

Form = Literal["hf", "meta"]


def export(source: str, out: Path, form: Form) -> None:
    """Write the model at `source` to the new folder `out`, which appears whole or not at all.

    Args:
        source: a run's folder, or a model: a folder in any form that wmtp loads, a `.gguf` file or `builtin:tiny`.
        out: must not be there yet.
        form: `hf`: the trunk alone, a causal language model for `from_pretrained`; `meta`: trunk and heads, see
            `wmtp.model.meta`.

    Raises:
        UserError: `out` is there; no model there, or one that this form can't say.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already; name a new folder")
    path = _model_at(source)
    tokenizer = load_tokenizer(tokenizer_location(path))
    model = load_model(path, horizon=None)
    (export_trunk if form == "hf" else export_meta)(model, tokenizer, out)


def _model_at(source: str) -> str:
    """The path of the model that `source` names."""
    if source == BUILTIN_TINY:
        return source
    path = Path(source)
    run = (path / RECIPE).is_file()
    model = path / "model" if run else path
    if not model.exists():
        why = "the run has no finished model" if run else "no such file or folder"
        raise UserError(f"{source}: {why}; give the folder of a finished run, or a model's folder or .gguf file")
    return str(model)
