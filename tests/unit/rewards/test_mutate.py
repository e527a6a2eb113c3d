"""Every kind of mistake, exactly where it belongs; nothing else of the program's text changes."""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.rewards.mutate import Mutant, first_token, mutants

SHARED = Path(__file__).parents[4] / "shared" / "data"
MANY = 10_000
# What Python says of odd programs: "is" with a literal, an invalid escape. From 3.12 on the second is a SyntaxWarning.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("SyntaxWarning", "DeprecationWarning")]


def changed(source: str, mutant: Mutant) -> tuple[str, str]:
    """What was there, and what is there now."""
    return source[slice(*mutant.original)], mutant.source[slice(*mutant.span)]


def check(source: str, found: list[Mutant]) -> None:
    """What holds of every mutant."""
    trees = {ast.dump(ast.parse(source))}
    for mutant in found:
        (start, stop), (begin, end) = mutant.original, mutant.span
        assert mutant.source[:begin] == source[:start], "all before the change"
        assert mutant.source[end:] == source[stop:], "all behind it"
        compile(mutant.source, "mutant", "exec")
        tree = ast.dump(ast.parse(mutant.source))
        assert tree not in trees, "differs from the original and from all others"
        trees.add(tree)
        before = source[:start]
        assert (mutant.line, mutant.column) == (before.count("\n") + 1, start - (before.rfind("\n") + 1))


# (kind, program, what of it becomes what: all of this kind that there is)
KINDS = [
    ("arithmetic", "x = a + b", {("+", "-")}),
    ("arithmetic", "x = (a) * (b)  # a + b", {("*", "+"), ("*", "//")}),
    ("arithmetic", "x //= 2 ** n", {("//=", "/="), ("//=", "%="), ("**", "*")}),
    ("arithmetic", "x = -n / m", {("-", ""), ("/", "//"), ("/", "*")}),
    ("arithmetic", 'x = "%d" % n', set()),
    ("boolean", "x = a and b and not c or d", {("and", "or"), ("or", "and")}),
    ("bitwise", "x = a & b << ~c", {("&", "|"), ("<<", ">>"), ("~", "")}),
    ("bitwise", "x |= a ^ b", {("|=", "&="), ("|=", "^="), ("^", "|"), ("^", "&")}),
    ("comparison", "x = 1 < a <= 9 == b", {("<", ">"), ("<=", ">="), ("==", "!=")}),
    ("comparison", "x = (a) not  in (b)", {("not  in", "in")}),
    ("comparison", "x = a is not None or a in b", {("is not", "is"), ("in", "not in")}),
    ("off_by_one", "x = a >= b", {(">=", ">")}),
    ("off_by_one", "x = 5", {("5", "6"), ("5", "4")}),
    ("off_by_one", "x = 0", {("0", "1")}),
    ("off_by_one", "x = a[i]", {("", " + 1"), ("", " - 1")}),
    ("off_by_one", "for i in range(n): pass", {("", " + 1"), ("", " - 1")}),
    ("off_by_one", "for i in range(n - 1): pass", {(" - 1", ""), ("1", "0"), ("1", "2")}),
    ("off_by_one", "x = a[:len(b)]", {("", " + 1"), ("", " - 1")}),
    ("constant", "x = True", {("True", "False")}),
    ("constant", "x = 7", {("7", "0"), ("7", "14"), ("7", "17")}),
    ("constant", "x = 1.5", {("1.5", "3.0"), ("1.5", "2.5")}),
    ("constant", "x = 'az'", {("az", "bz"), ("az", "aa"), ("az", "")}),
    ("constant", 'x = ""', {("", " ")}),
    ("constant", 'x = rb","', {(",", "")}),
    ("constant", "x = 'a\\n' 'b'", set()),
    ("constant", "x = f'{a + 1} is b'", set()),
    ("constant", "x: 'int' = None", set()),
    ("name", "x = max(a, b)", {("max", "min")}),
    ("name", "x = a.lower().upper + b.any", {("lower", "upper"), ("upper", "lower"), ("any", "all")}),
    ("name", "def f(a, b=1):\n  c = a\n  d(c)", {("a", "b"), ("a", "c"), ("c", "a"), ("c", "b")}),
    ("swapped", "x = f(a, b, c=d)", {("a, b", "b, a")}),
    ("swapped", "x = f(a,  # first\n  b)", {("a,  # first\n  b", "b,  # first\n  a")}),
    ("swapped", "x = a - b", {("a - b", "b - a")}),
    ("swapped", "x = a + b", set()),
    ("swapped", "x = f(a, a) + g(*a, b)", set()),
    ("dropped", "x = 1\nx += 2  # two\nprint(x)", {("x = 1\n", ""), ("x += 2  # two\n", ""), ("print(x)", "")}),
    ("dropped", "if a:\n    x = 1", set()),
    ("dropped", "a = 1; b = 2\nimport c", set()),
    (
        "dropped",
        "for a in b:\n    '''t'''\n    f(\n      a)\n    break",
        {("    f(\n      a)\n", ""), ("    break", "")},
    ),
    ("returned", "def f(a, b=0):\n    c = a\n    return a + c", {("a + c", x) for x in ("a", "b", "c")}),
    ("returned", "def f(a):\n    return a", set()),
    ("negated", "if a: pass", {("a", "not a")}),
    ("negated", "while a or b: pass", {("a or b", "not (a or b)")}),
    ("negated", "x = [a for a in b if not a]", {("not ", "")}),
    ("negated", "x = 1 if a < b else 2", set()),
]


@pytest.mark.parametrize(("kind", "source", "expected"), KINDS)
def test_each_kind(kind: str, source: str, expected: set[tuple[str, str]]) -> None:
    found = mutants(source, 0, MANY)
    check(source, found)
    assert {changed(source, mutant) for mutant in found if mutant.kind == kind} == expected


def test_docstrings_are_never_touched() -> None:
    source = '"""1 < 2"""\ndef f():\n    """3"""\n    \'4\'\n    return 5\n'
    found = mutants(source, 0, MANY)
    assert found
    assert all(mutant.line == 5 for mutant in found)


def test_places_are_in_characters() -> None:
    source = "é = 'ü'\r\nx = é['日本', n] + 1\n"
    found = mutants(source, 0, MANY)
    plus = next(mutant for mutant in found if changed(source, mutant) == ("+", "-"))
    assert (plus.line, plus.column, plus.source) == (2, 15, source.replace("+", "-"))
    check(source.replace("\r", ""), mutants(source.replace("\r", ""), 0, MANY))


def test_the_same_always_and_another_for_another_seed() -> None:
    source = "def f(a, b):\n    return a[1] + b * 2 - max(a, b)\n"
    first = mutants(source, 1, 5)
    assert mutants(source, 1, 5) == first
    assert mutants(source, 1, 8)[:5] == first, "a higher limit adds to it"
    assert mutants(source, 2, 5) != first
    assert mutants(source, 1, 0) == []


def test_kinds_take_turns() -> None:
    source = "def f(a):\n    x = [1, 2, 3, 4, 5, 6, 7, 8, 9]\n    if a:\n        x = a + a\n    return [x]\n"
    kinds = [mutant.kind for mutant in mutants(source, 3, 12)]
    assert set(kinds[:7]) == {"arithmetic", "constant", "dropped", "name", "negated", "off_by_one", "returned"}


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(SyntaxError):
        mutants("print 1", 0, 5)


NAMES = st.sampled_from(["a", "b", "(a)", "f(a, b)", "a[b]", "1", "-2", '"s"', "len(a)"])
EXPRESSIONS = st.recursive(
    NAMES,
    lambda inner: st.one_of(
        st.builds(
            "{} {} {}".format,
            inner,
            st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "<", "<=", "==", "and", "or", "in", "is"]),
            inner,
        ),
        st.builds("({}\n  {} {})".format, inner, st.sampled_from(["+", "and", "not in", "!="]), inner),
        st.builds("not {}".format, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("[x for x in {} if {}]".format, inner, inner),
        st.builds("g({}, {})".format, inner, inner),
        st.builds("({})[{}:{}]".format, inner, inner, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EXPRESSIONS, min_size=1, max_size=3), st.integers(0, 9))
def test_any_program(expressions: list[str], seed: int) -> None:
    source = "def f(a, b):\n" + "".join(f"    x = {e}\n" for e in expressions) + "    return x\n"
    try:
        ast.parse(source)
    except SyntaxError:
        return  # `not` within a comparison
    found = mutants(source, seed, 30)
    check(source, found)
    assert found


@pytest.mark.skipif(not SHARED.exists(), reason="needs the data of the project's shared folder")
def test_references_of_mbpp() -> None:
    lines = (SHARED / "mbpp" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    programs = [json.loads(line)["code"].replace("\r", "") for line in lines]
    kinds: dict[str, int] = {}
    for source in random.Random(0).sample(programs, 60):
        found = mutants(source, 1, 12)
        check(source, found)
        assert len(found) >= 2
        for mutant in found:
            kinds[mutant.kind] = kinds.get(mutant.kind, 0) + 1
    assert len(kinds) == 11, kinds


def test_the_first_token_of_a_mistake() -> None:
    offsets = [(0, 3), (3, 4), (4, 8), (8, 9)]
    assert [first_token(offsets, span) for span in [(0, 1), (2, 5), (3, 4), (4, 4), (8, 9), (9, 9)]] == [
        *(0, 0, 1, 2, 3),
        None,
    ]
