"""`wmtp weights RUN`: what each token of some training documents counts, with the model that the run has left.

The weighting is that of training: the same function, on the run's model, its value head or reference, without dropout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from wmtp.assemble import make_device, make_hardware
from wmtp.data import Tokenizer, TokenStore, load_tokenizer
from wmtp.data.collate import collate
from wmtp.errors import CheckpointError, UserError
from wmtp.evaluation import CONFIG, RECIPE
from wmtp.inputs import Context, Say, cache_folder, make_loader, training_documents
from wmtp.model import MTPModel, load_model
from wmtp.model.value_head import META_FILE, ValueHead, load_value_head
from wmtp.ops.weights import to_targets, weight_metrics
from wmtp.pretraining import explains_nothing
from wmtp.protocols import TokenWeighting
from wmtp.report.weights import Document, Token, Weighed, weights_page
from wmtp.settings import Settings, load_settings
from wmtp.training.checkpoint import open_checkpoint
from wmtp.training.progress import ProgressBar
from wmtp.training.run_folder import write_text_atomic
from wmtp.training.step import Hardware
from wmtp.training.tensor_files import read_tensors
from wmtp.types import IGNORE, JSON, Batch, ModelOutput
from wmtp.weight_source import make_weighting
from wmtp.weighting import Critic, Diff, Rho1, Uniform

PAGE = "weights.html"
USELESS = "The value head explained nothing, so all weights are 1 (critic.on_useless: uniform)."


@dataclass(frozen=True, slots=True)
class _Ended:
    """A finished run: its folder, its settings with its own model as base, and its summary."""

    run: Path
    settings: Settings
    summary: dict[str, Any]


def view_weights(
    run: Path,
    sample: int,
    documents: Sequence[int] = (),
    overrides: Sequence[str] = (),
    *,
    accept_unsandboxed: bool = False,
) -> dict[str, JSON]:
    """Write `weights.html` into a finished run's folder.

    Args:
        run: its folder.
        sample: how many documents of the training data, drawn by the run's seed; unless
        documents: says which, by their index in it.
        overrides: put over the run's settings, like "rho1.reference=live".
        accept_unsandboxed: of diff-wmtp, whose programs are run anew where their results are not in the cache.

    Returns:
        What the page shows: `path`, `metrics`, and `documents` with the weights, losses and scores of each token.

    Raises:
        UserError: no finished run with a model there, or no such document.
    """
    ended = _ended(run, overrides)
    with ProgressBar() as screen:
        chosen, found, source = _weigh_documents(ended, sample, documents, screen.say, accept_unsandboxed)
        shown, _ = found[0]
        metrics = {"these documents": _total([sums for _, sums in found])}
        last = {name: float(x) for name, x in ended.summary["train"]["last"].items() if name.startswith("weight_")}
        page = weights_page(
            Weighed(
                title=run.resolve().name,
                about=source,
                heads=len(shown.tokens[0].weights),
                score=_score_name(ended.settings),
                documents=[document for document, _ in found],
                metrics=metrics | ({"last step of training": last} if last else {}),
            )
        )
        write_text_atomic(run / PAGE, page)
    told = [{"index": index, **asdict(document)} for index, (document, _) in zip(chosen, found, strict=True)]
    return {
        "path": str(run / PAGE),
        "metrics": {**metrics["these documents"]},
        "documents": cast("JSON", told),
    }


def _weigh_documents(
    ended: _Ended, sample: int, documents: Sequence[int], say: Say, accept_unsandboxed: bool
) -> tuple[list[int], list[tuple[Document, dict[str, Tensor]]], list[str]]:
    """Indices of the documents; each as it is shown and the sums of its metrics; what they and their weights are."""
    settings, recipe, config = ended.settings, ended.settings.recipe, ended.settings.config
    cache, hardware, folder = cache_folder(config), make_hardware(config, make_device(config)), str(ended.run / "model")
    tokenizer = load_tokenizer(folder)
    store = training_documents(settings, tokenizer, cache)
    chosen = _choose(store, sample, documents, config.seed)
    say(f"loading {folder}")
    model = load_model(folder, horizon=recipe.model.horizon, head=recipe.model.head, native_mtp="drop")
    model.to(hardware.device).eval()
    if _useless(ended):
        weighting, source = Uniform(), USELESS
    else:
        value, source = _basis(ended, hardware)
        loader = make_loader(store, recipe.data.train, tokenizer, config.seed)
        context = Context(settings, tokenizer, hardware, cache, say, accept_unsandboxed)
        weighting = make_weighting(context, value, store, loader)
    mask_prompt = recipe.data.train.mask_prompt
    found = [_weigh(model, weighting, store, index, mask_prompt, tokenizer, hardware) for index in chosen]
    about = f"What each token counts in the loss of {recipe.train.algo}: {len(chosen)} of {len(store)} documents."
    return chosen, found, [f"{about} {source}".rstrip()]


def _ended(run: Path, overrides: Sequence[str]) -> _Ended:
    """The run in this folder, if it is one that has ended."""
    if not ((run / RECIPE).is_file() and (run / CONFIG).is_file()):
        raise UserError(f"{run}: no {RECIPE} in there; give the folder of a run")
    status, summary = run / "status.json", run / "summary.json"
    state = json.loads(status.read_text(encoding="utf-8"))["state"] if status.is_file() else "not begun"
    if state != "finished" or not summary.is_file():
        raise UserError(f"{run}: the run is not finished ({state}); go on with: wmtp train --resume auto")
    if not (run / "model").is_dir():
        raise UserError(f"{run}: the run's model is gone (no folder model/ in there)")
    base = f"paths.models.base={json.dumps(str(run / 'model'))}"
    settings = load_settings(run / RECIPE, run / CONFIG, [*overrides, base])
    return _Ended(run, settings, json.loads(summary.read_text(encoding="utf-8")))


def _choose(store: TokenStore, sample: int, documents: Sequence[int], seed: int) -> list[int]:
    """Indices of the documents to show: the same ones for the same seed, and more of them for a larger sample."""
    for index in documents:
        if not 0 <= index < len(store):
            raise UserError(f"--document {index}: the training data has documents 0 to {len(store) - 1}")
    return list(documents) or sorted(np.random.default_rng(seed).permutation(len(store))[:sample].tolist())


def _useless(ended: _Ended) -> bool:
    """Whether stage 1 failed, and the recipe then wanted the baseline."""
    recipe = ended.settings.recipe
    if recipe.train.algo != "critic-wmtp" or recipe.critic is None or recipe.critic.on_useless != "uniform":
        return False
    return explains_nothing({name: float(x) for name, x in ended.summary.get("pretrain", {}).get("last", {}).items()})


def _basis(ended: _Ended, hardware: Hardware) -> tuple[ValueHead | None, str]:
    """The value head, if the run has one, and a sentence on what the weights rest on."""
    recipe, config = ended.settings.recipe, ended.settings.config
    head, source = None, ""
    if recipe.train.algo == "critic-wmtp":
        head, source = _value_head(ended)
        head.to(hardware.device)
    elif recipe.train.algo == "rho1-wmtp":
        source = f"The reference is {config.paths.models.ref}."
    if recipe.loss.control != "none":
        source += f" Control {recipe.loss.control}: these weights are dealt out at random within each document."
    return head, source


def _value_head(ended: _Ended) -> tuple[ValueHead, str]:
    """The head as it was when the model was handed on, from that step's checkpoint; else as stage 1 has left it."""
    run, settings, end = ended.run, ended.settings, cast("dict[str, Any]", ended.summary["train"])
    best = end["best_step"] if settings.recipe.train.early_stopping.restore_best else None
    step = int(best if best is not None else end["total_steps"])
    given = settings.config.paths.checkpoints.base_path
    base = Path(given) / settings.recipe.run.name if given else run / "checkpoints"
    try:
        checkpoint = open_checkpoint(base / "train" / f"step-{step:08d}")
    except CheckpointError as error:
        if not (run / "value_head" / META_FILE).is_file():
            raise UserError(
                f"{run}: the value head can't be had: no folder value_head/ in there, and {error}"
            ) from error
        head = load_value_head(run / "value_head", trunk=None)
        return head, "The value head is that of stage 1: what it learnt afterwards went with the checkpoints."
    prefix = "value_head."
    found = read_tensors(checkpoint.path, only=f"model/{prefix}")["model"]
    weights = {name.removeprefix(prefix): value for name, value in found.items()}
    inner, width = weights["linear.weight"].shape
    head = ValueHead(width, inner=inner)
    # What only learns is in a checkpoint; mean and scale of the rewards stay as they are, and no weight needs them.
    head.load_state_dict(head.state_dict() | weights)
    return head, f"The value head is that of step {step}, as the model."


@torch.no_grad()
def _weigh(
    model: MTPModel,
    weighting: TokenWeighting,
    store: TokenStore,
    index: int,
    mask_prompt: bool,
    tokenizer: Tokenizer,
    hardware: Hardware,
) -> tuple[Document, dict[str, Tensor]]:
    """A document as it is shown, and the sums of its `weight_metrics`."""
    ids, prompt = store.document(index)
    batch = collate(store, [[index]], 0, mask_prompt).to(hardware.device)
    with hardware.autocast():
        output: ModelOutput = model(batch)
        weights: Tensor = weighting(batch, output)
        score = _scores(weighting, batch, output)
    valid = output.targets != IGNORE
    columns = [_by_token(x, valid) for x in (weights, output.ce, *([] if score is None else [score]))]
    texts = token_texts(tokenizer, ids.tolist())
    tokens = [Token(text, *(column[j] for column in columns), name=name) for j, (text, name) in enumerate(texts)]
    sums = weight_metrics(weights, output.targets, batch.documents)
    return Document(f"document {index}", tokens, prompt, _total([sums])), sums


def _score_name(settings: Settings) -> str:
    """What a score of the run's algorithm is."""
    match settings.recipe.train.algo:
        case "critic-wmtp" if settings.recipe.critic is not None:
            return f"change of value ({settings.recipe.critic.normalize})"
        case "rho1-wmtp":
            return "loss above the reference's, nats"
        case "diff-wmtp":
            return "share of wrong programs that differ here"
        case _:
            return ""


def _scores(weighting: TokenWeighting, batch: Batch, output: ModelOutput) -> Tensor | None:
    """[B,S,H], None where weights come from no scores (of a control they don't)."""
    if not isinstance(weighting, Critic | Diff | Rho1):
        return None
    score = weighting.score(batch, output)
    return score if score.ndim == 3 else to_targets(score, output.targets.shape[-1])


def _by_token(x: Tensor, valid: Tensor) -> list[list[float | None]]:
    """[1,S,H] of targets -> [S][H] of tokens: what head k at t says of token t+k stands at t+k; None: no target."""
    S, H = x.shape[1:]
    values = cast("list[list[float]]", x[0].double().cpu().tolist())
    there = cast("list[list[bool]]", valid[0].cpu().tolist())
    return [
        [values[j - k][k - 1] if j >= k and there[j - k][k - 1] else None for k in range(1, H + 1)] for j in range(S)
    ]


def _total(sums: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Means from sums that add up; those of a head that has no target are left out."""
    totals = {name: sum((row[name].double() for row in sums), torch.zeros(2).double()) for name in sums[0]}
    return {name: float(total[0] / total[1]) for name, total in totals.items() if total[1] > 0}


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, str]]:
    """(text, name) of each token: the texts together are what was written; a special token has a name instead.

    A character whose bytes are spread over several tokens is the text of the last of them.
    """
    special, backend = set(tokenizer.all_special_ids), tokenizer.backend_tokenizer
    found: list[tuple[str, str]] = []
    stream, held = DecodeStream(skip_special_tokens=False), list[int]()
    for token in [*ids, None]:
        if token is None or token in special:
            if held:  # bytes that are no character: cut off at the end of the document
                found[-1] = (backend.decode(held, skip_special_tokens=False), "")
            stream, held = DecodeStream(skip_special_tokens=False), []
            if token is not None:
                found.append(("", str(tokenizer.convert_ids_to_tokens(token))))
            continue
        text = stream.step(backend, token)
        held = [*held, token] if text is None else []
        found.append((text or "", ""))
    return found
