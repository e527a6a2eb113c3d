"""YAML 1.2's core schema on top of PyYAML, which speaks 1.1: there `no` is false, `1e-4` text, `1:30` is 90.

https://yaml.org/spec/1.2.2/#103-core-schema. Tags, merge keys and several documents are left out on purpose.
"""

from __future__ import annotations

import math
import re
from typing import Any, cast

import yaml

MAX_DEPTH = 40

_PREFIX = "tag:yaml.org,2002:"
_RESOLVERS = (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
_CURES = (
    ("mapping values are not allowed", "check the indentation, and put text that holds a colon in quotes"),
    ("'\\t'", "indent with spaces, not with tabs"),
    ("could not find expected ':'", "a key needs a colon after it"),
    ("expected <block end>", "check the indentation, and that brackets and quotes are closed"),
    ("<stream end>", "a bracket or quote is not closed"),
    ("unexpected end of stream", "a quote is not closed"),
    ("undefined alias", "an alias (*name) needs an anchor (&name) before it"),
)


class UnreadableError(Exception):
    """Text that is not YAML as settings use it. `line` counts from 1."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


class BadScalarError(Exception):
    """A scalar that stands for no usable value; says what it must be."""


class _Loader(yaml.BaseLoader):
    """Builds nodes; resolves by the core schema, refuses tags and deep nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nesting = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = cast(Any, self).peek_event()
        line: int = event.start_mark.line + 1
        tag: str | None = getattr(event, "tag", None)
        if tag:
            raise UnreadableError(line, f"the tag {tag.removeprefix(_PREFIX)!r} can't be used here; remove it")
        if self.nesting >= MAX_DEPTH:
            raise UnreadableError(line, f"nested more than {MAX_DEPTH} levels deep")
        self.nesting += 1
        node = super().compose_node(parent, index)
        self.nesting -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else; writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


for _name, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        cast(Any, _class).add_implicit_resolver(_PREFIX + _name, re.compile(f"(?:{_pattern})\\Z"), _first)


def parse(text: str) -> yaml.Node | None:
    """The document's root node, None for an empty document.

    Raises:
        UnreadableError: with the line and, where it is a known one, the cure.
    """
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UnreadableError(mark.line + 1 if mark else 1, _sentence(error.problem or "")) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnreadableError(line, f"the character U+{error.character:04X} is not allowed; remove it") from error
    except (ValueError, OverflowError) as error:  # PyYAML's chr() of an escape such as "\UFFFFFFFF"
        raise UnreadableError(1, "not valid YAML: an escape that names no character") from error


def value_of(node: yaml.ScalarNode) -> bool | int | float | str | None:
    """The value of a scalar.

    Raises:
        BadScalarError: for NaN, infinities, numbers beyond 64 bits and text that UTF-8 can't hold.
    """
    text: str = node.value
    match node.tag.removeprefix(_PREFIX):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            if len(text) <= 40 and abs(number := int(text, base)) < 2**63:
                return number
            raise BadScalarError("is too large a number")
        case "float":
            if "n" not in text.lower() and math.isfinite(number := float(text)):  # .inf, .nan
                return number
            raise BadScalarError("must be a finite number")
        case _:
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise BadScalarError("holds half a character (a lone surrogate); write the whole one")
            return text


def dump(data: object) -> str:
    """YAML that reads back as `data` in both versions, keys in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def _sentence(problem: str) -> str:
    if "another document" in problem:
        return "holds more than one YAML document; remove the `---` and what follows"
    cure = next((cure for sign, cure in _CURES if sign in problem), "")
    return f"not valid YAML: {problem}" + (f" ({cure})" if cure else "")
