"""Checks values against type annotations with limits: the little of pydantic that settings and states need."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from annotated_types import Ge, Gt, Le, Lt, MinLen

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping",
    list: "a list",
}


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """Resolved annotations of a dataclass or TypedDict, limits included; cached, as resolving is slow."""
    return get_type_hints(cls, include_extras=True)


def fault(hint: Any, value: Any) -> str:
    """What is wrong with `value` by the annotation `hint`, "" if nothing. Numbers have to be finite."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # the only unions here are `X | None`
        return "" if value is None else fault(args[0], value)
    if origin is Annotated:
        return fault(args[0], value) or _first(_out_of_range(limit, value) for limit in args[1:])
    if origin is Literal:
        return "" if value in args else f"{value!r} is not one of {', '.join(args)}"
    if origin is list and isinstance(value, list):
        return _first(fault(args[0], item) for item in cast("list[object]", value))
    if is_typeddict(hint) and isinstance(value, dict):
        return _fault_in_dict(hint, cast("dict[str, object]", value))
    return _wrong_type(dict if is_typeddict(hint) else origin or hint, value)


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")


def _fault_in_dict(hint: type, value: dict[str, object]) -> str:
    hints = type_hints(hint)
    faults = [f"{key}: no such entry" for key in value if key not in hints]
    faults += [f"{key}: missing" for key in hints if key not in value]
    faults += [f"{key}: {text}" for key in value if key in hints and (text := fault(hints[key], value[key]))]
    return "; ".join(faults)


def _wrong_type(kind: type, value: Any) -> str:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return "" if abs(value) <= sys.float_info.max else f"{value!r} is not finite"
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return ""
    cure = " (YAML 1.1 reads 1e-4 as text: write 1.0e-4)" if kind is float and isinstance(value, str) else ""
    return f"{value!r} is not {_WORDS[kind]}{cure}"


def _out_of_range(limit: object, value: Any) -> str:
    match limit:
        case Ge(ge) if not value >= ge:
            return f"{value!r} is too small, it must be at least {ge}"
        case Gt(gt) if not value > gt:
            return f"{value!r} is too small, it must be above {gt}"
        case Lt(lt) if not value < lt:
            return f"{value!r} is too large, it must be below {lt}"
        case Le(le) if not value <= le:
            return f"{value!r} is too large, it must be at most {le}"
        case MinLen(length) if len(value) < length:
            return "must not be empty"
        case _:
            return ""


def nearest(name: str, names: list[str]) -> str:
    """A hint at the valid name that `name` may have been meant for, for error messages."""
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
