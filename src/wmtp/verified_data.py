"""Right and wrong programs from training data that has tests: run once in the sandbox, and kept.

An example whose program passes its tests makes a group with up to `WRONG` programs that differ from it in one place
each and fail. A critic learns from a group's programs with their rewards, 1 or 0 (`rewarded_documents`); diff-wmtp
looks at where they differ (`differences`).

Shapes: N documents, R response tokens of all of them together.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmtp.data import Example, Tokenizer, TokenStore, tokenise
from wmtp.data.cache import open_or_write, open_sealed, seal
from wmtp.data.states import content_key, response_offsets
from wmtp.errors import DataError
from wmtp.evaluate.problems import Problem
from wmtp.evaluate.sandbox import Sandbox
from wmtp.evaluate.self_check import judge_one
from wmtp.evaluate.verdict import NOT_THE_PROGRAMS_FAULT, Verdict
from wmtp.ops.diff import differing_tokens
from wmtp.rewards.verified import Counts, verified_pairs

FORMAT = 2
"""Part of the cache's key: add one when the same programs give other mutants or verdicts than before."""
WRONG = 4
"""Most wrong programs of a right one."""
SEED = 0
"""Of the mistakes. Not the run's: runs of several seeds are compared, and learn from the same programs."""
UNCUT = 10**9

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Group:
    """An example whose program passes its tests, and responses to the same prompt that fail them (at least one)."""

    example: Example
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Task:
    """An example as `verified_pairs` looks at it."""

    id: str
    reference: str
    tests: Problem


def verified_groups(
    folder: Path,
    rows: Sequence[tuple[Example, Problem | str]],
    *,
    key: str,
    accept_unsandboxed: bool,
    say: Say,
) -> list[Group]:
    """The groups of a data set from the cache in `folder`; programs are run only if they aren't there.

    Args:
        folder: the cache.
        rows: the data set, as `wmtp.evaluate.problems.load_tested` gives it.
        key: the setting that names it, for messages.
        accept_unsandboxed: run programs even where no box can be had.
        say: is told what came of it.

    Raises:
        DataError: no wrong program for any example, or `folder` can't be written.
        SandboxError: programs must be run and no box can be had.
    """
    tasks = [
        _Task(str(i), problem.prefix + example.response, problem)
        for i, (example, problem) in enumerate(rows)
        if isinstance(problem, Problem)
    ]

    without = [problem for _, problem in rows if isinstance(problem, str)]
    untested = (
        f"{len(without)} of {len(rows)} documents without tests that can be run ({without[0]})" if without else ""
    )
    if not tasks:
        raise DataError(f"{key}: right and wrong programs are told apart by tests: {untested}")

    def write(new: Path) -> None:
        say(f"{key}: {len(tasks)} programs with tests; they and mistakes made in them are run once, kept in {folder}")
        wrong, counts = _run(tasks, accept_unsandboxed)
        if not wrong:
            raise DataError(
                f"{key}: no right program with a wrong one beside it: {_told(counts, untested)}; "
                "see `wmtp eval --self-check`"
            )
        content = json.dumps({"wrong": wrong, "counts": asdict(counts)}).encode()
        np.save(new / "programs.npy", np.frombuffer(content, dtype=np.uint8))  # an array has a checksum
        seal(new, {})

    def read(entry: Path) -> dict[str, Any] | None:
        found = open_sealed(entry)
        return None if found is None else json.loads(found[0]["programs"].tobytes())

    found = open_or_write(folder, _key(tasks), "cache of verified programs", read, write)
    say(f"{key}: {_told(Counts(**found['counts']), untested)}")
    return [Group(rows[int(index)][0], tuple(wrong)) for index, wrong in found["wrong"].items()]


def _told(counts: Counts, untested: str) -> str:
    parts = [
        f"{counts.problems} programs with tests",
        f"{counts.pairs} wrong programs made of them",
        f"{counts.equivalent} mutants dropped that pass all the same",
    ]
    if failing := counts.without_reference + counts.failing_references:
        parts.append(f"{failing} programs left out that don't pass their own tests")
    if counts.unjudged:
        parts.append(f"{counts.unjudged} mutants dropped that can't be judged")
    return ", ".join([*parts, *([untested] if untested else [])])


def _run(tasks: Sequence[_Task], accept_unsandboxed: bool) -> tuple[dict[str, list[str]], Counts]:
    """Wrong responses by the task's id."""
    wrong: dict[str, list[str]] = {}
    by_id = {task.id: task for task in tasks}
    with Sandbox(accept_unsandboxed=accept_unsandboxed) as sandbox, ThreadPoolExecutor(os.cpu_count()) as pool:

        def passes(programs: Sequence[tuple[str, Problem]]) -> list[bool | None]:
            def judged(item: tuple[str, Problem]) -> Verdict:
                return judge_one(sandbox, *item)

            verdicts = pool.map(judged, programs)
            return [None if v.outcome in NOT_THE_PROGRAMS_FAULT else v.passed for v in verdicts]

        pairs, counts = verified_pairs(tasks, passes, seed=SEED, per_problem=WRONG)
    for pair in pairs:
        prefix = len(by_id[pair.problem].tests.prefix)
        if pair.span[0] >= prefix:  # else the mistake is in the prompt
            wrong.setdefault(pair.problem, []).append(pair.wrong[prefix:])
    return wrong, counts


def _key(tasks: Sequence[_Task]) -> str:
    digest = sha256()
    for task in tasks:
        judged = [task.id, task.reference, type(task.tests.tests).__name__, asdict(task.tests)]
        digest.update(json.dumps(judged, sort_keys=True).encode() + b"\n")
    # What compiles, and to which tree, differs between versions of Python.
    return content_key("verified", FORMAT, SEED, WRONG, list(sys.version_info[:2]), digest.hexdigest())


def rewarded_documents(
    groups: Sequence[Group], tokenizer: Tokenizer, max_length: int, cache: Path, *, key: str, say: Say
) -> tuple[TokenStore, NDArray[np.float64]]:
    """N documents, right programs and wrong ones, and [N] their rewards: 1 or 0.

    One that is longer than `max_length` is left out: cut, a wrong program may be the beginning of a right one.

    Raises:
        DataError: all are too long, or the cache can't be written.
    """
    labelled = [
        (Example(group.example.prompt, response, group.example.origin), reward)
        for group in groups
        for response, reward in [(group.example.response, 1.0), *((wrong, 0.0) for wrong in group.wrong)]
    ]
    rewards = np.array([reward for _, reward in labelled])
    store = tokenise([example for example, _ in labelled], tokenizer, UNCUT, cache)
    fits = store.lengths <= max_length
    if not fits.all():
        say(f"{key}: {np.sum(~fits)} of {len(fits)} programs are longer than max_length {max_length}: left out")
        if not fits.any():
            raise DataError(f"{key}.max_length: {max_length}: all right and wrong programs are longer; raise it")
        kept = [example for (example, _), fit in zip(labelled, fits, strict=True) if fit]
        store, rewards = tokenise(kept, tokenizer, UNCUT, cache), rewards[fits]
    return store, rewards


def differences(
    groups: Sequence[Group], train: TokenStore, tokenizer: Tokenizer, max_length: int, cache: Path
) -> tuple[NDArray[np.float32], int]:
    """For each response token of `train` the share of its document's wrong programs in which it is another one.

    Args:
        groups: right and wrong programs.
        train: documents of at most `max_length` tokens; a group's right program is found among them by its tokens.
        tokenizer: of `train`.
        max_length: see above.
        cache: for tokens.

    Returns:
        [R], one document's after another's, 0 in documents that are in no group; and how many are in one.
    """
    right = tokenise([group.example for group in groups], tokenizer, UNCUT, cache)
    wrong = tokenise(
        [Example(group.example.prompt, text, group.example.origin) for group in groups for text in group.wrong],
        tokenizer,
        UNCUT,
        cache,
    )
    shares: dict[tuple[bytes, int], NDArray[np.float32]] = {}
    at = 0
    for i, group in enumerate(groups):
        ids, prompt = right.document(i)
        own = ids[prompt:].tolist()
        masks = [differing_tokens(own, _response(wrong, j)) for j in range(at, at + len(group.wrong))]
        at += len(group.wrong)
        shares[ids[:max_length].tobytes(), prompt] = np.mean(masks, axis=0)[: max_length - prompt].astype(np.float32)
    offsets = response_offsets(train)
    found = np.zeros(int(offsets[-1]), dtype=np.float32)
    matched = 0
    for i in range(len(train)):
        ids, prompt = train.document(i)
        if (share := shares.get((ids.tobytes(), prompt))) is not None:
            found[offsets[i] : offsets[i + 1]] = share
            matched += 1
    return found, matched


def _response(store: TokenStore, document: int) -> list[int]:
    ids, prompt = store.document(document)
    return ids[prompt:].tolist()
