"""Language models of the `transformers` library, loaded and saved as trunks. Remote code is never run."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from wmtp.errors import ModelError
from wmtp.model.builtin import BUILTIN_TINY, tiny_config
from wmtp.model.files import checkpoint_keys, gguf_of, native_mtp_keys
from wmtp.model.trunk import CausalTrunk


def load_trunk(folder: Path | str, *, native_mtp: Literal["refuse", "drop"], seed: int) -> CausalTrunk:
    """A trunk with fp32 weights.

    Args:
        folder: `builtin:tiny` (fresh weights from `seed`), a local folder in Hugging Face form, or a `.gguf` file.
        native_mtp: what to do if the checkpoint brings MTP weights of its own, which the library would drop silently.
        seed: for fresh weights.

    Raises:
        ModelError: not a model, weights missing, own MTP weights, or a kind of model that can't be taken apart.
    """
    name = str(folder)
    if name == BUILTIN_TINY:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            lm = cast(PreTrainedModel, AutoModelForCausalLM.from_config(LlamaConfig(**cast(Any, tiny_config()))))
    else:
        path = Path(folder)
        keys = native_mtp_keys(checkpoint_keys(path), path)
        if keys and native_mtp == "refuse":
            raise ModelError(
                f"{name}: the checkpoint brings {len(keys)} weights of its own multi-token-prediction module (such as "
                f"{keys[0]}), which wmtp's heads can't take over; set model.native_mtp: drop to train without them"
            )
        lm = _from_files(path)
    trunk = CausalTrunk(lm, name)
    trunk.check()
    return trunk


def make_llama(settings: Mapping[str, Any], weights: Iterable[tuple[str, Tensor]], name: str) -> CausalTrunk:
    """A Llama trunk with fp32 weights.

    Args:
        settings: of a `LlamaConfig`.
        weights: all of them by name.
        name: used in messages.
    """
    # A copy of each: the library keeps fp32 values as they are given, and these may lie in a file that is overwritten.
    values = {name: value.to(torch.float32, copy=True) for name, value in weights}
    options: dict[str, Any] = {"config": LlamaConfig(**settings), "state_dict": values, "dtype": torch.float32}
    with _quiet_library():
        lm = cast(Any, LlamaForCausalLM).from_pretrained(None, **options)
    trunk = CausalTrunk(lm, name)
    trunk.check()
    return trunk


def empty_trunk(folder: Path | str, llama: Mapping[str, Any] | None = None) -> CausalTrunk:
    """The trunk that `load_trunk`, or `make_llama` with these settings, gives, without values (on the meta device)."""
    if llama is not None or str(folder) == BUILTIN_TINY:
        config: Any = LlamaConfig(**cast(Any, llama or tiny_config()))
    else:
        place, gguf_file = gguf_of(Path(folder))
        options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
        config = cast(Any, AutoConfig).from_pretrained(place, trust_remote_code=False, **options)
    with torch.device("meta"):
        lm = cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    return CausalTrunk(lm, str(folder))


def load_classifier(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence-classification model with fp32 weights, and its tokenizer.

    Raises:
        ModelError: not one, weights missing (its last layer would be random), or without a tokenizer.
    """
    lm = _from_files(path, AutoModelForSequenceClassification, "sequence-classification model")
    try:
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{path}: no tokenizer in the reward model's folder: {error}") from error
    return lm.eval(), tokenizer


def _from_files(path: Path, kind: Any = AutoModelForCausalLM, name: str = "causal language model") -> PreTrainedModel:
    folder, gguf_file = gguf_of(path)
    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        with _quiet_library():
            loaded = kind.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: not a {name} that can be loaded: {error}") from error
    lm, info = cast("tuple[PreTrainedModel, dict[str, Iterable[Any]]]", loaded)
    absent = sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]])
    if absent:
        raise ModelError(
            f"{path}: {len(absent)} weights are missing or of another shape (such as {absent[0]}); "
            "the library would start them at random; give a complete checkpoint"
        )
    if gguf_file:
        # Its weights are plain fp32 now; left marked as quantised, the library would refuse to save them.
        vars(lm).pop("hf_quantizer", None)
        vars(lm.config).pop("quantization_config", None)
    return lm


def save_trunk(trunk: CausalTrunk, folder: Path) -> None:
    """Save as a plain Hugging Face folder with safetensors weights."""
    with _quiet_library():
        trunk.lm.save_pretrained(folder)


@contextmanager
def _quiet_library() -> Generator[None]:
    """No progress bars and no advice from the library: what matters is said in our errors."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
