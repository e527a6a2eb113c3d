"""The model: trunk, extra heads, and how they are stored."""

from wmtp.model.mtp import MTPModel
from wmtp.model.store import fetch_model, load_model, model_of, model_skeleton, save_model, tokenizer_location

__all__ = ["MTPModel", "fetch_model", "load_model", "model_of", "model_skeleton", "save_model", "tokenizer_location"]
