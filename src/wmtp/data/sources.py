"""Examples (a prompt and the response to learn) from the data sets that a recipe can name.

Every text is normalised: `\\r\\n` and a lone `\\r` become `\\n`. Rows are checked one by one, and what is
broken is told at once, by file and line.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, TypeAlias, cast

from wmtp.data.rows import BUILTIN, Location, Row, Split, read_rows
from wmtp.errors import DataError

Source: TypeAlias = Literal["mbpp", "contest", "humaneval", "custom"]

MBPP_IDS: dict[Split, range] = {
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
"""`task_id` of MBPP's official splits (Austin et al. 2021, arXiv 2108.07732); 1-10 are few-shot prompts."""

MAX_SOLUTIONS = 8
"""Solutions taken of one contest problem: some have thousands, and would be most of what is learnt."""

HELD_OUT = 20
"""Of a data set that is not divided, one document in so many is validation."""

_SHOWN = 5
_PYTHON3 = {
    3,
    "PYTHON3",
    "python3",
    "python",
}  # CodeContests' enumeration and its name (its PYTHON is Python 2), or plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt (may be empty) and the response to it; `origin` says where it comes from, for people."""

    prompt: str
    response: str
    origin: str


class _BrokenRowError(ValueError):
    """What is wrong with a row, in words that follow its place."""


def load_examples(source: Source, location: Location, split: Split, key: str = "data") -> list[Example]:
    """The examples of one split of a data set, in the order of the file. Forms of `location`: `read_rows`.

    Fields by source:
        mbpp: `task_id`, `text` (or `prompt`, as in the sanitized form), `code`, `test_list`. An undivided
            file is divided by the official ids; in one given for a split, an id of another split is refused.
        humaneval: `prompt`, `canonical_solution`. The split "test" alone: it is for evaluation.
        contest: `description`, or `prompt`, which is taken as it stands; and `solutions` (texts, or {language,
            solution} as in CodeContests, of which Python 3; the first `MAX_SOLUTIONS` different ones), or one
            `solution` or `response`.
        custom: `response` and `prompt` (may be missing), or `text`, or code files: no prompt, all is learnt.

    An undivided contest or custom data set is divided by content: 1 document in `HELD_OUT` (of contest: 1
    problem) is validation, always the same ones, and never on both sides.

    Raises:
        DataError: no data, broken rows (up to five named), or data that must not be used for this split.
    """
    if source == "humaneval" and split != "test":
        raise DataError(f"{key}: humaneval is for evaluation only, it has no {split} data: take it from data.{split}")
    builtin = (location if isinstance(location, str) else location.get(split)) == BUILTIN
    if builtin and source != "mbpp":
        raise DataError(f"{key}: {BUILTIN} are in the form of MBPP: name them as the location of mbpp, not {source}")
    rows, undivided = read_rows(location, split, key)
    if source == "mbpp" and not builtin:
        rows = _official(rows, split, undivided, key)
    examples = _convert(rows, _CONVERTERS[source], location, key)
    if not examples:
        raise DataError(f"{key}: {location!r} holds no {source} example for {split}")
    if undivided and source in ("contest", "custom"):
        return _divide(examples, split, by_prompt=source == "contest", place=f"{key}: {location!r}")
    return examples


def check_disjoint(train: Iterable[Example], validation: Iterable[Example]) -> int:
    """How many validation examples are in the training data, word for word: what they measure is memory."""
    seen = {(example.prompt, example.response) for example in train}
    return sum((example.prompt, example.response) in seen for example in validation)


def mbpp_prompt(row: Mapping[str, object]) -> str:
    """MBPP's prompt, for training and evaluation alike: a docstring of the task and its first test.

    The test is there because it alone names the function (bigcode-evaluation-harness shows all tests; one is
    shorter and leaves the others unseen).
    """
    tests = row.get("test_list")
    test = cast("list[object]", tests)[0] if isinstance(tests, list) and tests else None
    if not isinstance(test, str) or not test.strip():
        raise _BrokenRowError("field 'test_list' must be a list of texts, at least one")
    test = _normalise(test).strip()
    return f'"""\n{_text(row, "text", "prompt").strip()}\n{test}\n"""\n'


def contest_prompt(row: Mapping[str, object]) -> str:
    """A contest problem's prompt: a docstring of its description; a `prompt` is taken as it stands."""
    if row.get("description") is None and row.get("prompt") is not None:
        return _text(row, "prompt")
    return f'"""\n{_text(row, "description").strip()}\n"""\n'


def _convert(
    rows: Iterable[Row], converter: Callable[[Row], list[Example]], location: Location, key: str
) -> list[Example]:
    examples: list[Example] = []
    faults: list[str] = []
    for row in rows:
        try:
            if row.fault:
                raise _BrokenRowError(row.fault)
            examples += converter(row)
        except _BrokenRowError as error:
            faults.append(f"\n  {row.place}: {error}")
    if faults:
        more = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        count = f"{len(faults)} broken {'row' if len(faults) == 1 else 'rows'}"
        raise DataError(f"{key}: {count} in {location!r}; mend or remove:{''.join(faults[:_SHOWN])}{more}")
    return examples


def _official(rows: Iterable[Row], split: Split, undivided: bool, key: str) -> Iterable[Row]:
    """Rows whose task_id is of this split; others are passed over in an undivided file, else refused."""
    foreign: list[int] = []
    for row in rows:
        task = row.fields.get("task_id")
        if row.fault:
            yield row
        elif not isinstance(task, int) or isinstance(task, bool):
            yield Row(row.place, row.fields, f"field 'task_id' must be a whole number, it is {task!r}")
        elif task in MBPP_IDS[split]:
            yield row
        elif not undivided:
            foreign.append(task)
    if foreign:
        ids, official = ", ".join(map(str, foreign[:_SHOWN])), MBPP_IDS[split]
        raise DataError(
            f"{key}: {len(foreign)} MBPP problems given for {split} are of another split: task_id {ids}"
            f"{', ..' if len(foreign) > _SHOWN else ''}. {split} is {official.start}-{official.stop - 1}; anything"
            " else contaminates the evaluation. Remove them, or give one file of all problems to divide by id"
        )


def _divide(examples: list[Example], split: Split, by_prompt: bool, place: str) -> list[Example]:
    """This split's share, by content, so that a document keeps its side when others are added.

    The smallest hash is always held out and the largest never, so that neither side is empty.
    """
    if split == "test":
        raise DataError(f"{place} is not divided and has no test data: give a file for it")
    contents = (e.prompt if by_prompt and e.prompt else json.dumps([e.prompt, e.response]) for e in examples)
    hashes = [int.from_bytes(blake2b(c.encode(), digest_size=8).digest()) for c in contents]
    low, high = min(hashes), max(hashes)
    if low == high:
        raise DataError(f"{place} has one document alone: none can be held out for validation; give two files")
    held_out = [h == low or (h < 2**64 // HELD_OUT and h != high) for h in hashes]
    return [e for e, held in zip(examples, held_out, strict=True) if held == (split == "validation")]


def _mbpp(row: Row) -> list[Example]:
    task = row.fields.get("task_id")
    code = _text(row.fields, "code").rstrip() + "\n"
    return [Example(mbpp_prompt(row.fields), code, f"mbpp/{task}")]


def _humaneval(row: Row) -> list[Example]:
    code = _text(row.fields, "canonical_solution").rstrip() + "\n"
    return [Example(_text(row.fields, "prompt"), code, str(row.fields.get("task_id") or row.place))]


def _contest(row: Row) -> list[Example]:
    prompt = contest_prompt(row.fields)
    if row.fields.get("solutions") is None:
        return [Example(prompt, _text(row.fields, "solution", "response").rstrip() + "\n", row.place)]
    solutions = list(dict.fromkeys(_python3(row.fields["solutions"])))
    if len(solutions) > MAX_SOLUTIONS:
        logger.info("%s: %d of %d solutions taken", row.place, MAX_SOLUTIONS, len(solutions))
    return [Example(prompt, solution, row.place) for solution in solutions[:MAX_SOLUTIONS]]


def _python3(solutions: object) -> list[str]:
    """Texts; of {"language": [..], "solution": [..]} or [{"language", "solution"}, ..] those in Python 3."""
    if isinstance(solutions, Mapping):
        columns = cast("Mapping[str, list[object]]", solutions)
        languages, texts = columns.get("language"), columns.get("solution")
        if not isinstance(languages, list) or not isinstance(texts, list) or len(languages) != len(texts):
            raise _BrokenRowError("field 'solutions' needs 'language' and 'solution', lists of one length")
        items = [{"language": lang, "solution": text} for lang, text in zip(languages, texts, strict=True)]
    elif isinstance(solutions, list):
        items = [
            cast("dict[str, object]", item) if isinstance(item, dict) else {"language": "python3", "solution": item}
            for item in cast("list[object]", solutions)
        ]
    else:
        raise _BrokenRowError(f"field 'solutions' must be a list, it is {type(solutions).__name__}")
    wanted = [item for item in items if item.get("language") in _PYTHON3]
    return [_text(item, "solution").rstrip() + "\n" for item in wanted]


def _custom(row: Row) -> list[Example]:
    if row.fields.get("response") is None and row.fields.get("text") is not None:
        return [Example("", _text(row.fields, "text"), row.place)]
    prompt = "" if row.fields.get("prompt") in (None, "") else _text(row.fields, "prompt", empty=True)
    return [Example(prompt, _text(row.fields, "response", "text"), row.place)]


def _text(row: Mapping[str, object], *names: str, empty: bool = False) -> str:
    """The first of the named fields that is there."""
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        wanted = " or ".join(repr(name) for name in names)
        raise _BrokenRowError(f"field {wanted} is missing (there: {', '.join(row) or 'no field'})")
    value = row[name]
    if not isinstance(value, str):
        raise _BrokenRowError(f"field {name!r} must be text, it is {type(value).__name__}")
    if not value.strip() and not empty:
        raise _BrokenRowError(f"field {name!r} is empty")
    try:
        value.encode()  # JSON can hold half a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError as error:
        raise _BrokenRowError(f"field {name!r} has half of a surrogate pair at character {error.start}") from None
    return _normalise(value)


def _normalise(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


_CONVERTERS: dict[Source, Callable[[Row], list[Example]]] = {
    "mbpp": _mbpp,
    "contest": _contest,
    "humaneval": _humaneval,
    "custom": _custom,
}
