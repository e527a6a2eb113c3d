"""An evaluation: programs are sampled for problems, judged in the sandbox, and scored.

Each program's row goes to `samples.jsonl` as soon as it is judged, under a key made of everything that it depends on
(weights, prompt, sampling, tests, box). So an evaluation that was cut off goes on where it was, a greater `n` reuses
what is there, and nothing is ever taken from another model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import monotonic

import torch

from wmtp.data import Tokenizer
from wmtp.errors import DataError
from wmtp.evaluate.generate import Completion, Request, Sampling, generate
from wmtp.evaluate.problems import Problem, content_hash
from wmtp.evaluate.prompts import Protocol
from wmtp.evaluate.sample_files import collect, file_of, read_rows
from wmtp.evaluate.sandbox import Sandbox
from wmtp.evaluate.scores import exact_match
from wmtp.evaluate.self_check import SelfCheck, judge_one, programs, self_check
from wmtp.evaluate.summary import Row, passed, summary_of
from wmtp.evaluate.verdict import Verdict
from wmtp.model import MTPModel
from wmtp.protocols import Peers
from wmtp.types import JSON

Watch = Callable[[str, int, int, str], None]
"""Is told what is done, how much of how much, and a line on how it goes; may raise to end the evaluation."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A model that writes programs, and how it runs.

    Attributes:
        model: in evaluation or training mode, it does not matter.
        tokenizer: the one that the model was trained with.
        device, dtype: where and in what precision it runs.
        identity: hash of all weights.
    """

    model: MTPModel
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype
    identity: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """Problems of one source, and how programs for them are sampled and scored.

    Attributes:
        source: name of the data set, for the metrics' names.
        problems: all of them; those whose tests prove unsound are left out and named.
        protocol: prompt, stop sequences and how an answer becomes a program.
        temperatures: at each of them `n` programs are sampled for each problem.
        top_p: share of the probability that is sampled from.
        n: programs per problem and temperature.
        metrics: "exact" and "pass@K".
        seed: of all sampling.
        max_new_tokens: where an answer is cut off.
        batch_size: answers generated side by side.
        speculative: heads 2..H draft, head 1 verifies.
    """

    source: str
    problems: Sequence[Problem]
    protocol: Protocol
    temperatures: Sequence[float]
    top_p: float
    n: int
    metrics: Sequence[str]
    seed: int
    max_new_tokens: int
    batch_size: int
    speculative: bool = False


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One program to be sampled; `key` names it for ever."""

    problem: Problem
    temperature: float
    sample: int
    prompt: str
    key: str

    @property
    def stream(self) -> str:
        """What its random numbers derive from, beside the seed: not the model, so that models are compared alike."""
        return f"{self.problem.id} {self.temperature} {self.sample}"


def evaluate(
    task: Task, writer: Writer, sandbox: Sandbox, samples: Path, watch: Watch, peers: Peers | None = None
) -> dict[str, JSON]:
    """Sample, judge and score.

    Args:
        task: what is asked.
        writer: who answers.
        sandbox: where the answers run.
        samples: JSONL file that has or gets a row per program.
        watch: see `Watch`.
        peers: processes that have the same model and task: each samples a part, and all give the whole result.

    Returns:
        The task's part of `eval.json` (docs/evaluation.md).

    Raises:
        DataError: no problem's tests can be believed.
    """
    began, workers = monotonic(), os.cpu_count() or 1
    name = task.source
    check = _checked(task, sandbox, samples, watch, workers) if peers is None or peers.rank == 0 else None
    check = check if peers is None else peers.share(check)
    assert check is not None, "process 0 has checked"
    problems = [problem for problem in task.problems if problem.id not in check.bad]
    if not problems:
        raise DataError(f"{name}: the tests of none of the problems can be believed:\n" + "\n".join(check.lines(name)))
    wanted = list(_wanted(task, problems, writer, sandbox))
    rows = read_rows(samples, {w.key for w in wanted})
    reused = len(rows)
    own = samples if peers is None else file_of(samples, peers.rank)
    mine = wanted if peers is None else wanted[peers.rank :: peers.size]
    for row in _sample(task, writer, sandbox, [w for w in mine if w.key not in rows], own, workers):
        rows[row["key"]] = row
        watch(f"evaluating {name}", len(rows), len(wanted), f"{sum(map(passed, rows.values()))} passed")
    if peers is not None:
        rows = _merged(rows, samples, peers)
    by_problem: dict[float, dict[str, list[Row]]] = {t: {} for t in task.temperatures}
    for w in wanted:
        by_problem[w.temperature].setdefault(w.problem.id, []).append(rows[w.key])
    return {
        **_asked(task, problems, check),
        **summary_of(name, task.metrics, by_problem),
        "samples": {"file": samples.name, "rows": len(rows), "reused": reused},
        "seconds": round(monotonic() - began, 1),
    }


def _checked(task: Task, sandbox: Sandbox, samples: Path, watch: Watch, workers: int) -> SelfCheck:
    """What one process does for all: put together the rows of a run that was killed, and check the problems' tests."""
    collect(samples)
    told, total = partial(watch, f"checking {task.source}"), programs(task.problems)
    return self_check(task.problems, sandbox, workers=workers, watch=lambda done: told(done, total, ""))


def _asked(task: Task, problems: Sequence[Problem], check: SelfCheck) -> dict[str, JSON]:
    """What was asked and how, for `eval.json`."""
    return {
        "source": task.source,
        "protocol": {
            "name": task.protocol.name,
            "version": task.protocol.version,
            "template_sha256": task.protocol.template_hash,
            "stops": list(task.protocol.stops),
            "max_new_tokens": task.max_new_tokens,
        },
        "data": {"sha256": content_hash(task.problems), "problems": [problem.id for problem in problems]},
        "self_check": check.to_json(),
        "sampling": {
            "temperatures": list(task.temperatures),
            "top_p": task.top_p,
            "n": task.n,
            "seed": task.seed,
            "speculative": task.speculative,
        },
    }


def _merged(rows: dict[str, Row], samples: Path, peers: Peers) -> dict[str, Row]:
    """Together: everybody's rows; all of them are in the one file then."""
    everybody = peers.gather(rows)
    if peers.rank == 0:
        collect(samples)
    peers.gather(None)  # before that nobody begins a new file
    return {key: row for some in everybody for key, row in some.items()}


def _wanted(task: Task, problems: Sequence[Problem], writer: Writer, sandbox: Sandbox) -> Iterator[_Wanted]:
    protocol = task.protocol
    how_asked = [protocol.name, protocol.version, protocol.template_hash, list(protocol.stops)]
    how_sampled = [task.max_new_tokens, task.top_p, task.seed, task.speculative]
    shared = [writer.identity, str(writer.dtype), how_asked, how_sampled, sandbox.level, asdict(sandbox.limits)]
    for problem in problems:
        prompt = protocol.prompt(problem)
        of_problem = [*shared, prompt, content_hash([problem])]
        for temperature in task.temperatures:
            for sample in range(task.n):
                key = sha256(json.dumps([*of_problem, temperature, sample]).encode()).hexdigest()[:32]
                yield _Wanted(problem, temperature, sample, prompt, key)


def _sample(
    task: Task, writer: Writer, sandbox: Sandbox, wanted: Sequence[_Wanted], samples: Path, workers: int
) -> Iterator[Row]:
    """Generate and judge, side by side; each row is in the file before it is yielded."""
    verdicts: dict[tuple[str, str], Future[Verdict]] = {}  # the same program for the same problem is judged once
    waiting: list[tuple[_Wanted, Completion, str, Future[Verdict]]] = []
    by_stream = {w.stream: w for w in wanted}
    with ThreadPoolExecutor(workers) as pool, samples.open("a", encoding="utf-8") as file:

        def settle(*, all_of_them: bool) -> Iterator[Row]:
            for item in list(waiting):
                if all_of_them or item[-1].done():
                    waiting.remove(item)
                    row = _row(task, *item[:-1], item[-1].result())
                    # A failure of the box says nothing about the program: another evaluation judges it again.
                    if row["outcome"] != "box_error":
                        file.write(json.dumps(row) + "\n")
                        file.flush()
                    yield row

        try:
            for done in _completions(task, writer, wanted):
                w = by_stream[done.key]
                program = task.protocol.program(w.problem, done.text)
                same = (w.problem.id, program)
                if same not in verdicts:
                    verdicts[same] = pool.submit(judge_one, sandbox, program, w.problem)
                waiting.append((w, done, program, verdicts[same]))
                yield from settle(all_of_them=False)
            yield from settle(all_of_them=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _completions(task: Task, writer: Writer, wanted: Sequence[_Wanted]) -> Iterator[Completion]:
    for temperature in task.temperatures:
        requests = [Request(w.stream, w.prompt) for w in wanted if w.temperature == temperature]
        sampling = Sampling(
            temperature=temperature,
            top_p=task.top_p,
            max_new_tokens=task.max_new_tokens,
            stops=task.protocol.stops,
            seed=task.seed,
        )
        if requests:
            yield from generate(
                writer.model,
                writer.tokenizer,
                requests,
                sampling,
                batch_size=task.batch_size,
                speculative=task.speculative,
                device=writer.device,
                dtype=writer.dtype,
            )


def _row(task: Task, wanted: _Wanted, done: Completion, program: str, verdict: Verdict) -> Row:
    problem = wanted.problem
    return {
        "key": wanted.key,
        "source": task.source,
        "problem": problem.id,
        "temperature": wanted.temperature,
        "sample": wanted.sample,
        **asdict(verdict),
        "exact": problem.reference is not None and exact_match(program, problem.reference),
        **{name: value for name, value in asdict(done).items() if name not in ("key", "text")},
        "completion": done.text,
        "program": program,
    }
