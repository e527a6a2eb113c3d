"""From what pydantic finds wrong to a sentence that says what is expected and how to mend it.

The sentence is built from the field's JSON Schema (type, bounds, choices), not from pydantic's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from wmtp.settings.document import KeyPath, show, show_text
from wmtp.settings.recipe import RETIRED
from wmtp.settings.schema import Schema
from wmtp.types import JSON

_BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)
_PLURALS = {"number": "numbers", "integer": "whole numbers", "string": "texts"}
_YES = ("yes", "y", "on", "true")
_NO = ("no", "n", "off", "false")


def unknown_key(schema: Schema, path: KeyPath) -> str:
    """What to say about a key that the section at `path[:-1]` doesn't have."""
    cure = RETIRED.get((str(path[-2]), str(path[-1]))) if len(path) == 2 else None
    if cure:
        return cure
    if path[-1] == "<<":
        return "merge keys are not part of YAML 1.2; write the keys out"
    names = [name for variant in _at(schema, path[:-1]) for name in variant.get("properties", ())]
    near = nearest(str(path[-1]), names)
    return f"unknown key, did you mean `{near}`?" if near else f"unknown key; there are {', '.join(names)}"


def missing(schema: Schema, path: KeyPath) -> str:
    """What to say about a required key that isn't there."""
    return f"is required: {expected(schema, path)}"


def wrong_value(schema: Schema, path: KeyPath, value: JSON) -> str:
    """What the value at `path` must be, and how to get there from `value`."""
    variants = _at(schema, path)
    cure = next(filter(None, (_cure(variant, value) for variant in variants)), "")
    note = next((f" ({d})" for node in _nodes(schema, path) if (d := node.get("description"))), "")
    return f"must be {expected(schema, path)}{cure}{note}"


def expected(schema: Schema, path: KeyPath) -> str:
    """What belongs at `path`: "a number above 0 and at most 1"."""
    variants = _at(schema, path)
    kinds = [_describe(schema, v) for v in variants if v.get("type") != "null"]
    return " or ".join(kinds + ["null"] * (len(kinds) < len(variants)))


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that `name` was probably meant to be."""
    return next(iter(get_close_matches(name.lower(), names, n=1)), None)


def _nodes(schema: Schema, path: KeyPath) -> list[Schema]:
    """The schema nodes at `path`, references not followed."""
    nodes = [schema]
    for key in path:
        nodes = [child for node in nodes for v in _variants(schema, node) for child in _children(v, key)]
    return nodes


def _at(schema: Schema, path: KeyPath) -> list[Schema]:
    """The schemas that a value at `path` may have, references followed and alternatives spread out."""
    return [v for node in _nodes(schema, path) for v in _variants(schema, node)]


def _variants(schema: Schema, node: Schema) -> Iterator[Schema]:
    if "$ref" in node:
        yield from _variants(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    elif alternatives := node.get("anyOf") or node.get("oneOf"):
        for alternative in alternatives:
            yield from _variants(schema, alternative)
    else:
        yield node


def _children(node: Schema, key: str | int) -> list[Schema]:
    if isinstance(key, str):
        return [node["properties"][key]] if key in node.get("properties", ()) else []
    items: list[Schema] = node.get("prefixItems", ())
    return [items[key]] if key < len(items) else [node["items"]] if "items" in node else []


def _describe(schema: Schema, node: Schema) -> str:
    choices = _choices(node)
    match node.get("type"):
        case _ if choices and "pattern" in node:
            return f"text such as {', '.join(choices)}"
        case _ if choices:
            return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
        case "boolean":
            return "true or false"
        case "integer":
            return " ".join(["a whole number", *_range(node)])
        case "number":
            return " ".join(["a number", *_range(node)])
        case "string":
            return "non-empty text" if node.get("minLength") else "text"
        case "array":
            return _describe_list(schema, node)
        case _:
            return f"a section with the keys {', '.join(node.get('properties', ()))}"


def _describe_list(schema: Schema, node: Schema) -> str:
    items: list[Schema] = node.get("prefixItems", ())
    (item,) = _variants(schema, items[0] if items else node["items"])
    choices = _choices(item)
    kind = f"names such as {', '.join(choices)}" if choices else _PLURALS[item["type"]]
    if items:
        return f"a list of {len(items)} {kind}"
    return f"a {'non-empty ' if node.get('minItems') else ''}list of {kind}"


def _choices(node: Schema) -> list[str]:
    return node.get("enum") or node.get("examples") or ([node["const"]] if "const" in node else [])


def _range(node: Schema) -> list[str]:
    bounds = [f"{word} {node[bound]}" for bound, word in _BOUNDS if bound in node]
    return [" and ".join(bounds)] if bounds else []


def _cure(node: Schema, value: JSON) -> str:
    """How to get from `value` to what `node` asks for, where that can be guessed."""
    match node.get("type"), value:
        case "string", None | str() if _choices(node):
            near = nearest("none" if value is None else value, _choices(node))
            return f"; did you mean `{near}`?" if near else ""
        case "string", bool() | int() | float():
            return f'; put it in quotes: "{show(value)}"'
        case "boolean", str() if value.lower() in (*_YES, *_NO):
            return f"; write {'true' if value.lower() in _YES else 'false'}"
        case "integer", float() if value.is_integer():
            return f"; write {int(value)}"
        case "integer" | "number", str() if re.fullmatch(r"[-+]?[0-9][0-9_,]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?", value):
            return f"; write {re.sub('[_,]', '', value)}, without quotes"
        case "array", str() | int() | float() if not isinstance(value, bool):
            return f"; write [{show_text(value) if isinstance(value, str) else show(value)}]"
        case "object", None:
            return "; it is empty, write keys below it or remove it"
        case _:
            return ""
