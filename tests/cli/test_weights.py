"""`wmtp weights` as a person runs it: the page's numbers are those of a slow computation on what the run has saved."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.conftest import Bench, Result
from wmtp.data import load_tokenizer
from wmtp.model.builtin import tokenizer_file
from wmtp.training.checkpoint import newest_valid
from wmtp.training.tensor_files import read_tensors
from wmtp.weights_view import token_texts

RECIPE = """
run: {name: small}
model: {horizon: 2, head: residual}
train: {algo: baseline-mtp, max_steps: 2, eval_interval: 2, save_interval: 2}
optim: {lr: 1e-3}
loss: {lambda: .8, weight_temperature: .7, epsilon: .1, max_weight: 2.5}
data: {train: {sources: [custom], max_length: 48, batch_size: 4, pack_sequences: true}}
"""
LAMBDA, TEMPERATURE, EPSILON, MAX = 0.8, 0.7, 0.1, 2.5
RHO1 = RECIPE.replace("baseline-mtp", "rho1-wmtp") + "rho1: {}\n"
CRITIC = (
    RECIPE.replace("baseline-mtp", "critic-wmtp") + "critic: {value_lr: 1e-2}\npretrain: {max_steps: 6, lr: 1e-3}\n"
)
REF = ["--set", "paths.models.ref=runs/reference/model"]
DOCUMENT = 7


class Page(HTMLParser):
    """What the page's one program says: text, and the lines of each learnt token's tooltip."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text, self.said, self.inside = "", [], False
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = self.inside or tag == "pre"
        title = dict(attrs).get("title")
        if self.inside and tag == "span" and title is not None:
            self.said.append(title.splitlines())

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""

    def numbers(self, name: str) -> dict[int, float]:
        """Token number -> the number behind `name`, of tokens that have one for all heads."""
        found = {}
        for first, *lines in self.said:
            [line] = [line for line in lines if line.startswith(name)]
            if (number := re.fullmatch(r".*: ([+-]?\d+\.\d+)", line)) is not None:
                found[int(re.match(r"(?:prompt )?token (\d+)", first)[1])] = float(number[1])
        return found


def mean_one(scores: Sequence[float]) -> list[float]:
    """Weights of targets by SPEC 2, with the factor found by plain bisection."""
    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        clipped = [min(max(math.exp(s / TEMPERATURE + middle), EPSILON), MAX) for s in scores]
        low, high = (low, middle) if sum(clipped) >= len(scores) else (middle, high)
    return [1 - LAMBDA + LAMBDA * w for w in clipped]


def weights_of_tokens(score: dict[int, float]) -> dict[int, float]:
    """One weight a token, each of them a target of both heads (the prompts here have more tokens than two)."""
    tokens = [j for j in score for _ in range(2)]
    return dict(zip(tokens, mean_one([score[j] for j in tokens]), strict=True))


def document_of(bench: Bench, name: str, index: int) -> tuple[torch.Tensor, int, str]:
    """Token ids [1,S], length of the prompt, and text of a training document."""
    row = json.loads((bench.folder / "data" / "train.jsonl").read_text().splitlines()[index])
    tokenizer = AutoTokenizer.from_pretrained(bench.folder / "runs" / name / "model")
    prompt, response = (tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "response"))
    assert len(prompt) > 2
    return torch.tensor([[*prompt, *response, tokenizer.eos_token_id]]), len(prompt), row["prompt"] + row["response"]


def language_model(bench: Bench, name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(bench.folder / "runs" / name / "model", dtype=torch.float32).eval()


def losses(lm: Any, ids: torch.Tensor) -> list[float]:
    """Cross-entropy of each token given those before it; the first has none."""
    with torch.no_grad():
        log_p = lm(input_ids=ids).logits[0].log_softmax(-1)
    return [math.nan, *(-float(log_p[j - 1, ids[0, j]]) for j in range(1, ids.shape[1]))]


def weigh(bench: Bench, name: str, *more: str) -> tuple[Result, Page]:
    result = bench.run("weights", f"runs/{name}", "--document", str(DOCUMENT), *more)
    assert result.code == 0, result.err
    return result, Page(bench.folder / "runs" / name / "weights.html")


@pytest.fixture
def rho1(bench: Bench) -> Bench:
    (bench.folder / "recipe.yaml").write_text(RECIPE.replace("horizon: 2", "horizon: 1"))
    assert bench.train("--run-name", "reference").code == 0
    (bench.folder / "recipe.yaml").write_text(RHO1)
    assert bench.train(*REF).code == 0
    return bench


def test_rho1(rho1: Bench) -> None:
    result, page = weigh(rho1, "small")
    ids, prompt, text = document_of(rho1, "small", DOCUMENT)
    assert page.text == text
    assert result.out == "runs/small/weights.html\n"
    own, reference = (losses(language_model(rho1, name), ids) for name in ("small", "reference"))
    response = range(prompt, ids.shape[1])
    score = {j: own[j] - reference[j] for j in response}
    score = {j: 0.0 if abs(s) < 0.01 else s for j, s in score.items()}
    assert page.numbers("loss above") == pytest.approx(score, abs=1e-4)
    expected = weights_of_tokens(score)
    assert len(set(expected.values())) > 3
    assert page.numbers("weight") == pytest.approx(expected, abs=2e-4)
    # A run's settings can be put over: live gives the same, and each head by itself does not.
    assert weigh(rho1, "small", "--set", "rho1.reference=live")[1].said == page.said
    assert "head 2" in weigh(rho1, "small", "--set", "rho1.score_from=per_head")[1].said[0][1]
    _, dropped = weigh(rho1, "small", "--set", "rho1.selection_mode=token_skip")
    lowest = min(score, key=lambda j: score[j])
    assert dropped.numbers("weight")[lowest] == 0


def test_json_and_which_documents(rho1: Bench) -> None:
    def shown(*words: str) -> dict[str, Any]:
        result = rho1.run("weights", "runs/small", "--json", *words)
        assert result.code == 0, result.err
        return json.loads(result.out)

    whole = shown("--sample", "100")
    assert [document["index"] for document in whole["documents"]] == list(range(30))
    few, more = shown("--sample", "3"), shown("--sample", "5")
    chosen = [document["index"] for document in few["documents"]]
    assert len(chosen) == 3
    assert set(chosen) < {document["index"] for document in more["documents"]}
    assert few["documents"][0] == whole["documents"][chosen[0]]
    given = shown("--document", "4", "--document", "2")
    assert [document["index"] for document in given["documents"]] == [4, 2]
    weights = [w for token in given["documents"][1]["tokens"] for w in token["weights"] if w is not None]
    assert sum(weights) / len(weights) == pytest.approx(1, abs=1e-5)
    one = shown("--document", "2")["metrics"]
    assert one["weight_ess"] == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights) / len(weights), rel=1e-5)
    outside = rho1.run("weights", "runs/small", "--document", "30")
    assert (outside.code, "the training data has documents 0 to 29" in outside.err) == (2, True)


@pytest.fixture
def critic(bench: Bench) -> Bench:
    (bench.folder / "recipe.yaml").write_text(CRITIC)
    rows = [{"prompt": f"# {n}\n", "response": "def f(x):\n    return x" + " + 1" * (n % 7) + "\n"} for n in range(30)]
    (bench.folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the value head explains nothing")
        result = bench.train()
    assert result.code == 0, result.err
    return bench


def by_hand(bench: Bench, head: dict[str, torch.Tensor]) -> tuple[dict[int, float], dict[int, float]]:
    """(score, weight) of the document's response tokens, from hidden states that transformers gives."""
    ids, prompt, _ = document_of(bench, "small", DOCUMENT)
    with torch.no_grad():
        hidden = language_model(bench, "small").model(input_ids=ids).last_hidden_state[0]
        x = F.layer_norm(hidden, hidden.shape[-1:], head["norm.weight"], head["norm.bias"])
        x = F.gelu(x @ head["linear.weight"].T + head["linear.bias"])
        V = (4 * (x @ head["out.weight"][0] + head["out.bias"])).double().tolist()
    delta = {j: V[j] - 0.95 * V[j - 1] for j in range(prompt, len(V))}
    mean = sum(delta.values()) / len(delta)
    deviation = math.sqrt(sum((d - mean) ** 2 for d in delta.values()) / len(delta))
    score = {j: (d - mean) / deviation for j, d in delta.items()}
    return score, weights_of_tokens(score)


def assert_shows(page: Page, expected: tuple[dict[int, float], dict[int, float]]) -> None:
    score, weight = expected
    assert page.numbers("change of value (zscore)") == pytest.approx(score, abs=2e-3)
    assert page.numbers("weight") == pytest.approx(weight, abs=2e-3)


def test_critic(critic: Bench, same_weights: Callable[..., bool]) -> None:
    run = critic.folder / "runs" / "small"
    _, page = weigh(critic, "small")
    assert page.text == document_of(critic, "small", DOCUMENT)[2]
    newest = newest_valid(run / "checkpoints" / "train", print)
    named = read_tensors(newest.path)["model"]
    head = {name.removeprefix("value_head."): x for name, x in named.items() if name.startswith("value_head.")}
    last = by_hand(critic, head)
    assert_shows(page, last)
    assert "The value head is that of step 2" in page.source
    # Without checkpoints there is the head of stage 1, which is another one.
    shutil.rmtree(run / "checkpoints")
    first = by_hand(critic, load_file(run / "value_head" / "value_head.safetensors"))
    assert max(abs(first[1][j] - last[1][j]) for j in last[1]) > 0.01
    _, older = weigh(critic, "small")
    assert_shows(older, first)
    assert "The value head is that of stage 1" in older.source
    shutil.rmtree(run / "value_head")
    neither = critic.run("weights", "runs/small")
    assert (neither.code, "the value head can't be had" in neither.err) == (2, True)


def test_a_useless_critic_that_weighs_nothing(critic: Bench) -> None:
    summary = critic.folder / "runs" / "small" / "summary.json"
    told = json.loads(summary.read_text())
    told["pretrain"]["last"]["eval_explained_variance"] = -0.5
    summary.write_text(json.dumps(told))
    _, page = weigh(critic, "small", "--set", "critic.on_useless=uniform")
    assert set(page.numbers("weight").values()) == {1.0}
    assert "explained nothing" in page.source


def test_a_control_has_the_weights_elsewhere(critic: Bench) -> None:
    real, shuffled = (
        json.loads(critic.run("weights", "runs/small", "--document", "7", "--json", *extra).out)["documents"][0]
        for extra in ([], ["--set", "loss.control=shuffled"])
    )
    lists = [[w for t in document["tokens"] for w in t["weights"] if w is not None] for document in (real, shuffled)]
    assert sorted(lists[0]) == sorted(lists[1])
    assert lists[0] != lists[1]
    assert not any(token["scores"] for token in shuffled["tokens"]), "dealt out at random, not by a score"


def test_diff(bench: Bench) -> None:
    """Tokens at which programs part have more weight, by exp(score / temperature) before bounds and lambda."""
    (bench.folder / "recipe.yaml").write_text(RECIPE.replace("baseline-mtp", "diff-wmtp"))
    for split, numbers in (("train", range(2, 10)), ("validation", range(20, 22))):
        rows = [
            {
                "prompt": f"# add {n}\n",
                "response": f"def f(x):\n    return x + {n}\n",
                "test_list": [f"assert f(1) == {n + 1}"],
            }
            for n in numbers
        ]
        rows.append({"prompt": "# nothing to run\n", "response": "x = 1\n"})
        (bench.folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert bench.train("--no-eval").code == 0
    _, page = weigh(bench, "small")
    score, weight = page.numbers("share of wrong programs"), page.numbers("weight")
    assert min(score.values()) == 0 < max(score.values()) <= 1
    unscaled = {j: (w - (1 - LAMBDA)) / LAMBDA for j, w in weight.items()}
    inside = [j for j, u in unscaled.items() if EPSILON * 1.01 < u < MAX * 0.99]
    assert len({round(score[j], 3) for j in inside}) > 1
    for i, j in pairwise(inside):
        assert math.log(unscaled[j] / unscaled[i]) == pytest.approx((score[j] - score[i]) / TEMPERATURE, abs=2e-3)
    # A program without tests has no wrong one beside it.
    assert bench.run("weights", "runs/small", "--document", "8").code == 0
    assert set(Page(bench.folder / "runs" / "small" / "weights.html").numbers("weight").values()) == {1.0}


def test_a_baseline_run(bench: Bench) -> None:
    (bench.folder / "recipe.yaml").write_text(RECIPE)
    assert bench.train().code == 0
    _, page = weigh(bench, "small")
    assert "All weights are 1" in page.source
    assert set(page.numbers("weight").values()) == {1.0}


def test_runs_without_a_model(bench: Bench) -> None:
    (bench.folder / "recipe.yaml").write_text(RECIPE)
    nothing = bench.run("weights", "data")
    assert (nothing.code, "give the folder of a run" in nothing.err) == (2, True)
    assert bench.train().code == 0
    status = bench.folder / "runs" / "small" / "status.json"
    told = json.loads(status.read_text())
    status.write_text(json.dumps(told | {"state": "preempted"}))
    unfinished = bench.run("weights", "runs/small")
    assert (unfinished.code, "not finished (preempted)" in unfinished.err) == (2, True)
    status.write_text(json.dumps(told))
    shutil.rmtree(bench.folder / "runs" / "small" / "model")
    gone = bench.run("weights", "runs/small")
    assert (gone.code, "model is gone" in gone.err) == (2, True)
    for result in (nothing, unfinished, gone):
        assert "Traceback" not in result.err
        assert len(result.err.strip().splitlines()) == 1


def test_texts_of_tokens() -> None:
    tokenizer = load_tokenizer(str(tokenizer_file()))
    text = "\n# é → 日本\n\tx = '\U0001f600'\r\n  "
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    found = token_texts(tokenizer, [*ids, eos])
    assert "".join(piece for piece, _ in found) == text
    assert [name for _, name in found] == [*[""] * len(ids), "<eos>"]
    assert any(piece == "" for piece, _ in found[:-1]), "a character of several tokens is the last one's"
    arrow = tokenizer("→", add_special_tokens=False)["input_ids"]
    assert len(arrow) == 3
    cut = token_texts(tokenizer, [*ids, *arrow[:2]])
    assert "".join(piece for piece, _ in cut).startswith(text)
    assert len(cut) == len(ids) + 2
