"""The model: trunk, extra heads, and how they are stored."""

from wmtp.model.mtp import MTPModel
from wmtp.model.store import (
    export_meta,
    export_trunk,
    fetch_model,
    load_model,
    model_of,
    model_skeleton,
    save_model,
    tokenizer_location,
)

__all__ = [
    "MTPModel",
    "export_meta",
    "export_trunk",
    "fetch_model",
    "load_model",
    "model_of",
    "model_skeleton",
    "save_model",
    "tokenizer_location",
]
