"""From a document to a model, with all that is wrong with the document noted in it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from wmtp.errors import WmtpError
from wmtp.settings import explain
from wmtp.settings.config import Config
from wmtp.settings.document import Document, KeyPath
from wmtp.settings.recipe import Recipe
from wmtp.settings.schema import schema_of
from wmtp.types import JSON

M = TypeVar("M", bound=BaseModel)

# Take the place of required settings that are missing or wrong, so that all others can still be checked.
_STAND_INS: dict[type[BaseModel], dict[str, Any]] = {
    Recipe: {
        "run": {"name": "x"},
        "train": {"algo": "baseline-mtp"},
        "data": {"train": {"sources": ["mbpp"]}},
    },
    Config: {},
}
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def validate(kind: type[M], file: Document) -> M:
    """The model. Problems are reported in `file`; defaults or stand-ins take the place of what is wrong."""
    data = file.data
    while True:
        try:
            # Strict JSON: "5" is no number and 3.0 no whole one, yet a list may become a tuple.
            return kind.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            found = error.errors(include_url=False)
        known = len(file.bad)
        _report(kind, file, found)
        # Each round takes more of what is wrong out, so this ends.
        assert len(file.bad) > known or data is file.data, found
        data = _merged(_STAND_INS[kind], _without(file.data, file.bad | _lost_sections(file)))


def _report(kind: type[BaseModel], file: Document, errors: Iterable[ErrorDetails]) -> None:
    schema = schema_of(kind)
    known = Document(file.name, bad=set(file.bad))
    for error in errors:
        path = _path_in_file(error["loc"])
        if known.is_bad(path) or _is_echo(error, file.get(path)):
            continue
        cause = error.get("ctx", {}).get("error")
        if error["type"] in _UNKNOWN_KEY:
            file.report(path, _wrong_file(path) or explain.unknown_key(schema, path))
        elif error["type"] == "missing" and isinstance(path[-1], str):
            file.report(path, explain.missing(schema, path))
        elif isinstance(cause, WmtpError):  # a dataclass's own check says "name: sentence"
            for line in str(cause).splitlines():
                name, _, text = line.partition(": ")
                key = re.split(r"[.\[]", name)[0]  # what is wrong within a setting makes all of it wrong
                file.report((*path, key), text if key == name else f"{name}: {text}")
        else:
            if error["type"] == "missing":  # an item of a list that is too short
                path = path[:-1]
            file.report(path, explain.wrong_value(schema, path, file.get(path)))


def _is_echo(error: ErrorDetails, value: JSON) -> bool:
    """Whether pydantic only says what follows from another error: it doesn't count items that are wrong."""
    return error["type"] == "default_factory_not_called" or (error["type"] == "too_short" and bool(value))


def _path_in_file(loc: tuple[str | int, ...]) -> KeyPath:
    """Pydantic's location without the tag that it puts behind the path of a data set."""
    return loc[:3] + loc[4:] if loc[:2] == ("paths", "datasets") and len(loc) > 3 else loc


def _wrong_file(path: KeyPath) -> str:
    if path[0] in Config.model_fields and len(path) == 1:
        return "belongs in the config file, not in the recipe"
    if path[0] in Recipe.model_fields and len(path) == 1:
        return "belongs in the recipe, not in the config file"
    return ""


def _lost_sections(file: Document) -> set[KeyPath]:
    """Optional sections that can't do without what is wrong in them."""
    return {path[:-1] for path in file.bad if path == ("data", "eval", "sources")}


def _without(data: dict[str, JSON], paths: Iterable[KeyPath]) -> dict[str, JSON]:
    if () in paths:
        return {}
    data = copy.deepcopy(data)
    for path in paths:
        parent: JSON = data
        for key in path[:-1]:
            parent = parent.get(str(key)) if isinstance(parent, dict) else None
        if isinstance(parent, dict):
            parent.pop(str(path[-1]), None)
    return data


def _merged(defaults: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """`data`, with what it lacks from `defaults`, in inner sections too."""
    merged = {**defaults, **data}
    for key, inner in defaults.items():
        if isinstance(inner, dict) and key in data:
            merged[key] = _merged(defaults[key], data[key])
    return merged
