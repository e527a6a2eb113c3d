"""The embedded tasks: fixed, sound, disjoint, and asserts that tell programs apart."""

import ast
import hashlib
import json
import re
from collections import Counter
from random import Random

import pytest

from wmtp.data.builtin import Split, builtin_tasks
from wmtp.data.builtin_families import FAMILIES
from wmtp.data.builtin_phrases import Expression, Phrase

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DIGEST = "1cae14b743c8242373a0eb9b9898914e02993b7c74bd75efaf3134bcfb063220"
Row = dict[str, object]


@pytest.fixture(scope="module")
def tasks() -> dict[str, list[Row]]:
    return {split: builtin_tasks(split) for split in SPLITS}


@pytest.fixture(scope="module")
def every(tasks: dict[str, list[Row]]) -> list[Row]:
    return [row for split in SPLITS for row in tasks[split]]


def passes(code: str, row: Row) -> bool:
    space: dict[str, object] = {}
    try:
        exec(code, space)
        for test in row["test_list"]:
            exec(test, space)
    except (AssertionError, TypeError, ValueError, IndexError, AttributeError, NameError):
        return False
    return True


def name_of(row: Row) -> str:
    return re.match(r"def (\w+)\(", row["code"])[1]


def renamed(code: str, name: str) -> str:
    return re.sub(r"^def \w+", f"def {name}", code)


def signature(row: Row) -> str:
    return re.match(r"def \w+(\(.*?\)):", row["code"])[1]


def test_sizes_fields_and_ids(tasks: dict[str, list[Row]], every: list[Row]):
    assert [len(tasks[split]) for split in SPLITS] == [4000, 200, 200]
    assert sorted(row["task_id"] for row in every) == list(range(1, 4401))
    for row in every:
        assert list(row) == ["task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list"]
        assert len(row["test_list"]) == 3
        assert (row["test_setup_code"], row["challenge_test_list"]) == ("", [])
        assert all(test.startswith(f"assert {name_of(row)}(") for test in row["test_list"])


def test_the_set_is_the_one_that_results_were_reported_on(tasks: dict[str, list[Row]]):
    content = json.dumps([tasks[split] for split in SPLITS]).encode()
    assert hashlib.sha256(content).hexdigest() == DIGEST


def test_a_caller_cannot_spoil_the_set_for_the_next(tasks: dict[str, list[Row]]):
    rows = builtin_tasks("test")
    rows[0]["text"] = "changed"
    rows[0]["test_list"].clear()
    assert builtin_tasks("test") == tasks["test"]


def test_no_description_or_program_occurs_twice(every: list[Row]):
    texts = Counter(" ".join(re.findall(r"\w+", row["text"].lower())) for row in every)
    programs = Counter(renamed(row["code"], "f") for row in every)
    assert max(texts.values()) == 1
    assert max(programs.values()) == 1


def test_programs_are_of_many_shapes(tasks: dict[str, list[Row]]):
    """Shape: the syntax tree without names and constants. So small changes of one template don't count."""

    def shapes(split: str) -> Counter[str]:
        trees = (ast.walk(ast.parse(row["code"])) for row in tasks[split])
        return Counter(" ".join(type(node).__name__ for node in tree) for tree in trees)

    train, test = shapes("train"), shapes("test")
    assert len(FAMILIES) >= 60
    assert len(train) >= 300
    assert max(train.values()) <= 0.05 * 4000
    assert len(test) >= 80


def test_references_pass_their_own_asserts(every: list[Row]):
    assert [row["task_id"] for row in every if not passes(row["code"], row)] == []


@pytest.mark.parametrize("body", ["return None", "return {arg}", "return True", "return 0", "pass"])
def test_trivial_programs_fail(every: list[Row], body: str):
    passed = [
        row["task_id"]
        for row in every
        if passes(f"def {name_of(row)}{signature(row)}:\n    {body.format(arg=signature(row)[1:-1])}", row)
    ]
    assert passed == []


def test_programs_of_other_tasks_fail(every: list[Row]):
    """Another task's program with the same arguments, given the right name: at most 1 in 100 passes."""
    random = Random(0)
    by_signature: dict[str, list[Row]] = {}
    for row in every:
        by_signature.setdefault(signature(row), []).append(row)
    passed = 0
    for row in every:
        other = random.choice([r for r in random.sample(by_signature[signature(row)], 3) if r is not row])
        passed += passes(renamed(other["code"], name_of(row)), row)
    assert passed <= 0.01 * len(every)


def test_a_changed_constant_or_letter_is_noticed(every: list[Row]):
    for row in every:
        head, body = row["code"].split(":", 1)
        for found in re.finditer(r'\d+|"[a-y]"', body):
            other = str(int(found[0]) + 9) if found[0].isdigit() else '"z"'
            assert not passes(f"{head}:{body[: found.start()]}{other}{body[found.end() :]}", row), row


@pytest.mark.parametrize(
    ("template", "filling", "expected"),
    [
        ("@ * 3", "n + 2", "(n + 2) * 3"),
        ("@ * 3", "n", "n * 3"),
        ("@ > 3", "n + 2", "n + 2 > 3"),
        ("min(@, 3)", "n + 2", "min(n + 2, 3)"),
        ("-@", "n % 2", "-(n % 2)"),
        ("@[::-1]", "nums + [4]", "(nums + [4])[::-1]"),
        ("@.upper()", 's.replace("a", "")', 's.replace("a", "").upper()'),
        ("sum(@)", "x for x in nums", "sum(x for x in nums)"),
    ],
)
def test_operations_nest_with_the_brackets_that_precedence_needs(template: str, filling: str, expected: str):
    assert format(Expression(template), filling) == expected


def test_phrases_take_their_object():
    assert f"{Phrase('add 3 to @'):each number}" == "add 3 to each number"


def test_known_tasks_by_hand(every: list[Row]):
    """What a few descriptions mean, written by hand: the templates' text and code must mean the same."""
    meant = {
        r"keep the numbers in a list that are at most (\d+)\.": ([7, 50, 12], lambda v, k: [x for x in v if k >= x]),
        r"find the remainder of a number divided by (\d+)\.": (100, lambda v, k: v - v // k * k),
        r"count how often (\d+) occurs in a list\.": ([3, 9, 9, 30], lambda v, k: sum(x == k for x in v)),
        r"remove the last (\d+) letters of each word in a list\.": (
            ["candle", "bread"],
            lambda v, k: [w[: len(w) - k] for w in v],
        ),
        r"list the first n multiples of (\d+)\.": (3, lambda v, k: [k, 2 * k, 3 * k]),
        r"limit each number in a list to at most (\d+)\.": ([1, 60, 20], lambda v, k: [k if x > k else x for x in v]),
        r"sort a list by the distance to (\d+)\.": ([-100, 300, 1], lambda v, k: [1, -100, 300]),
    }
    seen: Counter[str] = Counter()
    for row in every:
        for pattern, (value, meaning) in meant.items():
            match = re.search(r"function to " + pattern, row["text"])
            if match is None:
                continue
            expected = meaning(value, int(match[1]))
            space: dict[str, object] = {}
            exec(row["code"], space)
            assert space[name_of(row)](value) == expected, row
            seen[pattern] += 1
    assert set(seen) == set(meant)
