"""All the small mistakes that can be put into a program, as changes of its text.

Kinds: `arithmetic`, `boolean`, `bitwise` (another operator), `comparison` (another direction), `off_by_one` (a number,
an index, a bound, `<` for `<=`), `constant`, `name` (another variable, `max` for `min`), `swapped` (arguments or
operands), `dropped` (a statement), `returned` (another value), `negated` (a condition).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, cast

from wmtp.rewards.text import SourceText

Kind = Literal[
    "arithmetic",
    "bitwise",
    "boolean",
    "comparison",
    "constant",
    "dropped",
    "name",
    "negated",
    "off_by_one",
    "returned",
    "swapped",
]

Operators: TypeAlias = "dict[str, tuple[Kind, tuple[str, ...]]]"

OPERATORS: Operators = {
    "+": ("arithmetic", ("-",)),
    "-": ("arithmetic", ("+",)),
    "*": ("arithmetic", ("+", "//")),
    "/": ("arithmetic", ("//", "*")),
    "//": ("arithmetic", ("/", "%")),
    "%": ("arithmetic", ("//",)),
    "**": ("arithmetic", ("*",)),
    "&": ("bitwise", ("|",)),
    "|": ("bitwise", ("&", "^")),
    "^": ("bitwise", ("|", "&")),
    "<<": ("bitwise", (">>",)),
    ">>": ("bitwise", ("<<",)),
}
COMPARISONS: dict[str, tuple[tuple[Kind, str], ...]] = {
    "<": (("comparison", ">"), ("off_by_one", "<=")),
    "<=": (("comparison", ">="), ("off_by_one", "<")),
    ">": (("comparison", "<"), ("off_by_one", ">=")),
    ">=": (("comparison", "<="), ("off_by_one", ">")),
    "==": (("comparison", "!="),),
    "!=": (("comparison", "=="),),
    "in": (("comparison", "not in"),),
    "not in": (("comparison", "in"),),
    "is": (("comparison", "is not"),),
    "is not": (("comparison", "is"),),
}
_TWINS = ("max min", "any all", "upper lower", "startswith endswith", "lstrip rstrip", "find rfind", "index rindex")
TWINS = {a: b for pair in map(str.split, _TWINS) for a, b in (pair, pair[::-1])}
"""Functions and methods that are easily taken for one another."""

ATOMS = (ast.Name, ast.Constant, ast.Call, ast.Attribute, ast.Subscript, ast.List, ast.Dict, ast.Set)
"""Expressions that need no brackets, whatever stands beside them."""

COMMUTATIVE = (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr, ast.BitXor)
DROPPABLE = (ast.Assign, ast.AugAssign, ast.Expr, ast.Delete, ast.Break, ast.Continue, ast.Assert)


@dataclass(frozen=True, slots=True)
class Change:
    """The text from `start` to `stop` becomes `text`."""

    kind: Kind
    start: int
    stop: int
    text: str


def changes(tree: ast.Module, text: SourceText) -> Iterator[Change]:
    """Every change that is known, many of which may not compile. Docstrings and f-strings are left alone."""
    yield from _visit(tree, text, ())


def _visit(node: ast.AST, text: SourceText, names: tuple[str, ...]) -> Iterator[Change]:
    """Changes within a node; `names`: what the function around it calls its own."""
    if isinstance(node, ast.JoinedStr):
        return  # where its parts stand, Python tells only from 3.12 on
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        names = _own_names(node)
    yield from _at(node, text, names)
    for child in ast.iter_child_nodes(node):
        documentation = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        # Of annotations and decorators' arguments no test would notice anything.
        annotation = child in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if not (documentation or annotation):
            yield from _visit(child, text, names)


def _at(node: ast.AST, text: SourceText, names: tuple[str, ...]) -> Iterator[Change]:
    match node:
        case ast.BinOp():
            yield from _binary(node, text)
        case ast.AugAssign():
            start, stop = text.span(node.target)[1], text.span(node.value)[0]
            yield from _operator(text, start, stop, "=")
        case ast.BoolOp():
            for left, right in pairwise(node.values):
                yield from _word(text, text.span(left)[1], text.span(right)[0], "boolean", {"and": "or", "or": "and"})
        case ast.UnaryOp():
            yield from _unary(node, text)
        case ast.Compare():
            yield from _compare(node, text)
        case ast.Constant():
            yield from _constant(node, text)
        case ast.Name(ctx=ast.Load()):
            others = names if node.id in names else (TWINS[node.id],) if node.id in TWINS else ()
            yield from (Change("name", *text.span(node), other) for other in others)
        case ast.Attribute(attr=attribute) if attribute in TWINS:
            stop = text.span(node)[1]
            yield Change("name", stop - len(attribute), stop, TWINS[attribute])
        case ast.Call():
            yield from _call(node, text)
        case ast.Subscript():
            parts = (node.slice.lower, node.slice.upper) if isinstance(node.slice, ast.Slice) else (node.slice,)
            for part in parts:
                yield from _one_off(part, text)
        case ast.Return():
            yield from _returned(node, text, names)
        case _:
            pass
    for condition in _conditions(node):
        yield from _negated(condition, text)
    for block in ("body", "orelse", "finalbody"):
        statements: object = getattr(node, block, None)
        if isinstance(statements, list):  # of a lambda it is an expression
            yield from _dropped(cast("list[ast.stmt]", statements), text)


def _binary(node: ast.BinOp, text: SourceText) -> Iterator[Change]:
    formats = isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant | ast.JoinedStr)
    if formats and not isinstance(getattr(node.left, "value", ""), int | float):
        return  # "%d" % n
    yield from _operator(text, text.span(node.left)[1], text.span(node.right)[0], "")
    if isinstance(node.left, ATOMS) and isinstance(node.right, ATOMS) and not isinstance(node.op, COMMUTATIVE):
        yield from _swapped(node.left, node.right, text)


def _operator(text: SourceText, start: int, stop: int, suffix: str) -> Iterator[Change]:
    for word in text.words(start, stop):
        if word.text.endswith(suffix) and (known := OPERATORS.get(word.text.removesuffix(suffix))):
            for other in known[1]:
                yield Change(known[0], word.start, word.stop, other + suffix)


def _word(text: SourceText, start: int, stop: int, kind: Kind, others: dict[str, str]) -> Iterator[Change]:
    for word in text.words(start, stop):
        if word.text in others:
            yield Change(kind, word.start, word.stop, others[word.text])


def _unary(node: ast.UnaryOp, text: SourceText) -> Iterator[Change]:
    start, operand = text.span(node)[0], text.span(node.operand)[0]
    if isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield Change("arithmetic", start, start + 1, "")
    elif isinstance(node.op, ast.Invert):
        yield Change("bitwise", start, start + 1, "")
    elif isinstance(node.op, ast.Not):
        end = start + len("not")
        gap = text.source[end:operand]
        yield Change("negated", start, end + len(gap) - len(gap.lstrip(" ")), "")


def _compare(node: ast.Compare, text: SourceText) -> Iterator[Change]:
    for left, right in pairwise([node.left, *node.comparators]):
        words = [word for word in text.words(text.span(left)[1], text.span(right)[0]) if word.text not in "()"]
        if words and (known := COMPARISONS.get(" ".join(word.text for word in words))):
            for kind, other in known:
                yield Change(kind, words[0].start, words[-1].stop, other)


def _constant(node: ast.Constant, text: SourceText) -> Iterator[Change]:
    start, stop = text.span(node)
    value = node.value
    if isinstance(value, bool):
        yield Change("constant", start, stop, str(not value))
    elif isinstance(value, int) and value < 10**15:
        for other in (value + 1, value - 1):
            if other >= 0:
                yield Change("off_by_one", start, stop, str(other))
        for other in sorted({0, value * 2, value + 10} - {value, value + 1, value - 1}):
            yield Change("constant", start, stop, str(other))
    elif isinstance(value, float) and value == value and abs(value) < 1e15:
        for other in (value * 2, value + 1.0):
            yield Change("constant", start, stop, repr(other))
    elif isinstance(value, str | bytes):
        yield from _literal(text.source[start:stop], start)


def _literal(literal: str, start: int) -> Iterator[Change]:
    """Another text between the same quotes; of a literal with escapes or of several pieces nothing is made."""
    whole = re.fullmatch(r"""([bBrRuU]*)("{3}|'{3}|"|')([^\\\n"']*)\2""", literal)
    if whole is None:
        return
    begin, content = start + whole.start(3), whole[3]
    stop = begin + len(content)
    if not content:
        yield Change("constant", begin, stop, " ")
        return
    yield Change("constant", begin, stop, "")
    for at in [m.start() for m in re.finditer(r"[A-Za-z0-9]", content)][:8]:
        other = {"z": "a", "Z": "A", "9": "0"}.get(content[at]) or chr(ord(content[at]) + 1)
        yield Change("constant", begin, stop, content[:at] + other + content[at + 1 :])


def _call(node: ast.Call, text: SourceText) -> Iterator[Change]:
    for left, right in pairwise(node.args):
        if not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
            yield from _swapped(left, right, text)
    if isinstance(node.func, ast.Name) and node.func.id == "range":
        for bound in node.args[:2]:
            yield from _one_off(bound, text)


def _swapped(left: ast.expr, right: ast.expr, text: SourceText) -> Iterator[Change]:
    (start, left_end), (right_start, stop) = text.span(left), text.span(right)
    between = text.source[left_end:right_start]
    yield Change("swapped", start, stop, text.of(right) + between + text.of(left))


def _one_off(node: ast.expr | None, text: SourceText) -> Iterator[Change]:
    """One more and one less; of a number `_constant` takes care."""
    if node is None or isinstance(node, ast.Constant | ast.Slice | ast.Tuple | ast.Starred):
        return
    stop = text.span(node)[1]
    match node:
        case ast.BinOp(op=ast.Add() | ast.Sub(), left=kept, right=ast.Constant(value=1)):
            yield Change("off_by_one", text.span(kept)[1], stop, "")  # n - 1 -> n
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            pass
        case _ if isinstance(node, ATOMS) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)):
            yield Change("off_by_one", stop, stop, " + 1")
            yield Change("off_by_one", stop, stop, " - 1")
        case _:
            pass


def _returned(node: ast.Return, text: SourceText, names: tuple[str, ...]) -> Iterator[Change]:
    if node.value is None:
        return
    # Not None: right programs hardly ever say `return None`, so the looks alone would give it away.
    for other in names if not isinstance(node.value, ast.Name) else ():
        yield Change("returned", *text.span(node.value), other)


def _conditions(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        return [node.test]
    return node.ifs if isinstance(node, ast.comprehension) else []


def _negated(node: ast.expr, text: SourceText) -> Iterator[Change]:
    start, stop = text.span(node)
    # A comparison has its own opposite, and a `not` can be taken away.
    if not isinstance(node, ast.Compare | ast.Constant) and not (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    ):
        whole = text.source[start:stop]
        yield Change("negated", start, stop, f"not {whole}" if isinstance(node, ATOMS) else f"not ({whole})")


def _dropped(statements: list[ast.stmt], text: SourceText) -> Iterator[Change]:
    if len(statements) < 2:
        return  # a block must not be empty, and a `pass` would give it away
    for statement in statements:
        documentation = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        lines = text.alone(statement)
        if isinstance(statement, DROPPABLE) and not documentation and lines:
            yield Change("dropped", *lines, "")


def _own_names(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> tuple[str, ...]:
    """Parameters, and what is assigned to."""
    arguments = function.args
    found = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    if not isinstance(function, ast.Lambda):
        stored = [n for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        found += [name.id for name in stored]
    return tuple(dict.fromkeys(found))
