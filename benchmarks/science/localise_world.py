"""What localise.py looks at: the programs, the frozen model that reads them, the head that learns, and the measures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noise import Curve
from numpy.typing import NDArray
from scipy import stats

from wmtp.data import Loader, TokenStore, load_tokenizer, pad_id
from wmtp.data.states import StateStore, content_key
from wmtp.evaluate.problems import load_tested
from wmtp.frozen import Frozen, identity_of
from wmtp.model import MTPModel, load_model, tokenizer_location
from wmtp.model.trunk import CausalTrunk
from wmtp.objectives import WeightedMTP
from wmtp.ops.ce import linear_cross_entropy
from wmtp.ops.diff import differing_tokens
from wmtp.ops.schedule import lr_factor
from wmtp.rewards.mutate import mutants
from wmtp.rewards.verified import SPARE
from wmtp.stopping import LossEarlyStopping
from wmtp.training.loop import Stage, fit
from wmtp.training.optim import make_optimizer
from wmtp.training.step import Hardware
from wmtp.verified_data import SEED, UNCUT, WRONG, Group, rewarded_documents, verified_groups
from wmtp.weighting import Uniform

BUILTIN_MODEL = "builtin:tiny"
CHUNK = 2048  # tokens
NEAR = 2
"""Tokens behind a mistake that still count in the lenient measure."""


@dataclass(frozen=True)
class Settings:
    """All that a result depends on but method and seed."""

    model: str
    data: str
    tasks: int
    held_out: float
    max_length: int
    base_steps: int
    base_lr: float
    base_batch_size: int
    steps: int
    lr: float
    batch_size: int
    gamma: float
    gae_lambda: float
    discount: float
    precision: str

    @property
    def hardware(self) -> Hardware:
        return Hardware(torch.device("cpu"), {"fp32": torch.float32, "bf16": torch.bfloat16}[self.precision])


@dataclass(frozen=True)
class Programs:
    """N right and wrong programs of all tasks; nothing here depends on a seed.

    Attributes:
        store: the programs, each behind its task's prompt.
        rewards: [N] 1 or 0.
        task: [N] which task it is for.
        kind: of each one's mistake, "" of right ones.
        mutated: of each one which response tokens are the mistake.
    """

    store: TokenStore
    rewards: NDArray[np.float64]
    task: NDArray[np.int64]
    kind: list[str]
    mutated: list[NDArray[np.bool_]]


def part(store: TokenStore, documents: NDArray[np.int64]) -> TokenStore:
    """Some documents of `store`."""
    tokens = np.concatenate([store.document(int(i))[0] for i in documents])
    offsets = np.concatenate([[0], np.cumsum(store.lengths[documents])])
    return replace(store, key=content_key("part", store.key, documents.tolist()), tokens=tokens, offsets=offsets,
                   prompt_lengths=store.prompt_lengths[documents])  # fmt: skip


@lru_cache(maxsize=1)
def fixed_model(path: str) -> MTPModel:
    """A model that no seed changes."""
    return load_model(path, horizon=1).eval()


@lru_cache(maxsize=1)
def programs_of(given: Settings, cache: Path) -> Programs:
    """Right and wrong programs, run in the sandbox unless they are in `cache`."""
    tokenizer = load_tokenizer(tokenizer_location(given.model))
    source, _, location = ("mbpp", "", given.data) if given.data.startswith("builtin:") else given.data.partition(":")
    splits = ["train"] if given.data.startswith("builtin:") else ["train", "validation", "test"]
    rows = [row for split in splits for row in load_tested(source, location, split)][: given.tasks]
    groups = verified_groups(cache / "verified", rows, key="data", accept_unsandboxed=False, say=print)
    store, rewards = rewarded_documents(groups, tokenizer, UNCUT, cache / "tokens", key="data", say=print)
    task = np.repeat(np.arange(len(groups)), [1 + len(group.wrong) for group in groups])
    # A task with a program that is too long is left out whole, so that every right program keeps its wrong ones.
    long = np.unique(task[store.lengths > given.max_length])
    kept = np.flatnonzero(~np.isin(task, long))
    prefixes = {example: problem.prefix for example, problem in rows if not isinstance(problem, str)}
    kinds = [kind for group in groups for kind in ("", *kinds_of(group, prefixes[group.example]))]
    firsts = np.flatnonzero(rewards == 1)[task]
    mutated = [mistake(store, i, first) for i, first in enumerate(firsts)]
    return Programs(part(store, kept), rewards[kept], task[kept], [kinds[i] for i in kept], [mutated[i] for i in kept])


def kinds_of(group: Group, prefix: str) -> list[str]:
    """The kind of each wrong program's mistake: the mutants are drawn again, which gives the same ones."""
    drawn = mutants(prefix + group.example.response, SEED, SPARE * WRONG)
    by_source = {mutant.source: str(mutant.kind) for mutant in drawn}
    return [by_source[prefix + text] for text in group.wrong]


def mistake(store: TokenStore, wrong: int, right: int) -> NDArray[np.bool_]:
    """[T], the tokens of a wrong program that the right one doesn't have there; behind a gap, the first one."""
    (ids, prompt), (other, _) = store.document(wrong), store.document(right)
    return differing_tokens(ids[prompt:].tolist(), other[prompt:].tolist())


@dataclass(frozen=True)
class Kept(Frozen):
    """A frozen model whose states of all programs are there already, each one's last prompt token before its response.

    Attributes:
        all_states: see above.
        documents: key of a part of the programs -> which ones.
    """

    all_states: StateStore
    documents: dict[str, NDArray[np.int64]]

    def states(self, store: TokenStore, *, attention: bool) -> StateStore:
        """The responses' states."""
        chosen = self.documents[store.key]
        offsets = self.all_states.offsets
        rows = np.concatenate([np.arange(offsets[i] + 1, offsets[i + 1]) for i in chosen])
        lengths = offsets[chosen + 1] - offsets[chosen] - 1
        paid = self.all_states.attention if attention else None
        return StateStore(
            self.all_states.hidden[rows],
            np.concatenate([[0], np.cumsum(lengths)]),
            None if paid is None else paid[rows],
        )


@dataclass
class World:
    """What a seed decides.

    Attributes:
        given, seed, cache: what it is made of.
        programs: of all tasks.
        train, held_out: programs of the tasks to learn from, and of the others.
    """

    given: Settings
    seed: int
    cache: Path
    programs: Programs
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]

    @cached_property
    def balanced(self) -> NDArray[np.int64]:
        """The programs to learn from, each right one as often as its task has wrong ones."""
        rewards, task = self.programs.rewards[self.train], self.programs.task[self.train]
        wrong = np.bincount(task, weights=rewards == 0).astype(np.int64)
        return np.repeat(self.train, np.where(rewards == 1, wrong[task], 1))

    @cached_property
    def frozen(self) -> Kept:
        """The frozen model, made when it is first asked for."""
        given, store, rewards = self.given, self.programs.store, self.programs.rewards
        tokenizer = load_tokenizer(tokenizer_location(given.model))
        if given.model == BUILTIN_MODEL:
            rights = [part(store, side[rewards[side] == 1]) for side in (self.train, self.held_out)]
            model = train_base(given, self.seed, *rights, pad_id(tokenizer))
        else:
            model = fixed_model(given.model)
        model.requires_grad_(False)
        frozen = Frozen(model, identity_of(model, given.hardware), tokenizer, given.hardware, self.cache, print)
        # One token more than the response: the value before its first token is that of the last prompt token.
        more = replace(store, key=content_key("one more", store.key), prompt_lengths=store.prompt_lengths - 1)
        states = frozen.states(more, attention=True)
        documents = {part(store, side).key: side for side in (self.train, self.balanced, self.held_out)}
        return Kept(model, frozen.identity, tokenizer, given.hardware, self.cache, print, states, documents)


def make_world(given: Settings, seed: int, cache: Path) -> World:
    programs = programs_of(given, cache)
    tasks = np.random.default_rng([seed, 5]).permutation(np.unique(programs.task))
    number = round(given.held_out * len(tasks))
    train, held_out = (np.flatnonzero(np.isin(programs.task, own)) for own in (tasks[number:], tasks[:number]))
    return World(given, seed, cache, programs, train, held_out)


def prepare(given: Settings, cache: Path, *, states: bool) -> None:
    """Put into `cache` what no seed changes: what came of running the programs, and a given model's states."""
    world = make_world(given, 0, cache)
    if states and given.model != BUILTIN_MODEL:
        _ = world.frozen


def train_base(given: Settings, seed: int, train: TokenStore, held_out: TokenStore, pad: int) -> MTPModel:
    """The embedded model, its weights being random, taught right programs as a next-token model."""
    model = load_model(BUILTIN_MODEL, horizon=1, seed=seed)

    def loader(store: TokenStore) -> Loader:
        return Loader(store, given.base_batch_size, given.max_length, pack=False, mask_prompt=False, pad_id=pad,
                      seed=seed)  # fmt: skip

    steps = given.base_steps
    stage = Stage(
        name="train",
        model=model,
        objective=WeightedMTP(Uniform(), 1),
        optimizer=make_optimizer(model, "adamw", lr=given.base_lr, weight_decay=0.1, betas=(0.9, 0.95)),
        lr_factor=partial(lr_factor, total_steps=steps, warmup_steps=math.ceil(0.05 * steps), kind="cosine"),
        batches=loader(train),
        total_steps=steps,
        limit="max_steps",
        stopper=LossEarlyStopping(),
        held_out=(WeightedMTP(Uniform(), 1), loader(held_out).batches),
        eval_interval=steps,
        hardware=given.hardware,
        seed=seed,
        grad_clip=1.0,
    )
    progress = fit(stage, Curve())
    print(f"seed {seed}: base model, held-out loss {progress.last['eval_loss']:.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def surprise_of(world: World, given: Settings) -> list[NDArray[np.float64]]:
    """Of each held-out program [T], the base model's loss for its response tokens, from the states that are kept."""
    states, store = world.frozen.all_states, world.programs.store
    before = np.concatenate([np.arange(states.offsets[i], states.offsets[i + 1] - 1) for i in world.held_out])
    documents = [store.document(int(i)) for i in world.held_out]
    tokens = torch.from_numpy(np.concatenate([ids[prompt:] for ids, prompt in documents]).astype(np.int64))
    trunk = world.frozen.model.trunk
    assert isinstance(trunk, CausalTrunk)
    weight, bias = trunk.unembedding.weight, trunk.unembedding.bias
    pieces = np.split(before, range(CHUNK, len(before), CHUNK))
    with given.hardware.autocast():
        losses = [
            linear_cross_entropy(torch.from_numpy(states.hidden[rows]).float(), weight, bias, targets)
            for rows, targets in zip(pieces, tokens.split(CHUNK), strict=True)
        ]
    ends = np.cumsum([len(ids) - prompt for ids, prompt in documents])
    return np.split(torch.cat(losses).double().numpy(), ends[:-1])


def looks_of(world: World) -> list[NDArray[np.float64]]:
    """Of each held-out program [T], by how much its tokens are likelier in right programs than in wrong ones.

    For each token of the vocabulary, log of the share of right programs to learn from that have it in their response,
    minus the same of wrong ones. No model, no context: what can be told of mistakes by their looks alone.
    """
    programs = world.programs

    def response(i: int) -> NDArray[np.int32]:
        ids, prompt = programs.store.document(i)
        return ids[prompt:]

    counts = np.ones((2, int(programs.store.tokens.max()) + 1))
    for i in world.train:
        counts[int(programs.rewards[i]), np.unique(response(int(i)))] += 1
    totals = np.bincount(programs.rewards[world.train].astype(np.int64))
    score = np.log(counts[1] / (totals[1] + 2)) - np.log(counts[0] / (totals[0] + 2))
    return [score[response(int(i))] for i in world.held_out]


def auroc(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """P(score of a right program > that of a wrong one), ties half: Mann-Whitney's U over its largest value."""
    n, m = int(right.sum()), int((~right).sum())
    return float((stats.rankdata(scores)[right].sum() - n * (n + 1) / 2) / (n * m))


def hits(world: World, scores: list[NDArray[np.float64]], seed: int) -> dict[str, Any]:
    """How often a mutated token is among the lowest scores of its program, over held-out wrong programs; and by chance.

    Ties are broken by lot. `near` is top 1, where the `NEAR` tokens behind a mutated one count as well.
    """
    random = np.random.default_rng([seed, 7])
    rows: list[dict[str, float]] = []
    kinds: dict[str, list[tuple[float, float]]] = {}
    for i, score in zip(world.held_out, scores, strict=True):
        if world.programs.rewards[i] == 1:
            continue
        mutated = world.programs.mutated[i]
        assert len(score) == len(mutated)
        T, m = len(mutated), int(mutated.sum())
        near = np.convolve(mutated, np.ones(NEAR + 1))[:T] > 0
        order = np.lexsort((random.random(T), score))
        row = {
            "top1": mutated[order[0]],
            "top3": mutated[order[:3]].any(),
            "near": near[order[0]],
            "chance1": m / T,
            "chance3": 1 - comb(T - m, 3) / comb(T, 3),
            "chance_near": near.mean(),
        }
        rows.append({name: float(value) for name, value in row.items()})
        kinds.setdefault(world.programs.kind[i], []).append((rows[-1]["top1"], rows[-1]["chance1"]))
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return mean | {"kinds": {kind: [*np.mean(own, axis=0).tolist(), len(own)] for kind, own in sorted(kinds.items())}}
