"""A settings file as plain data that knows on which line each value stands, with `--set` put over it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import yaml

from wmtp.settings.recipe import ALIASES
from wmtp.settings.yaml12 import MAX_DEPTH, BadScalarError, UnreadableError, parse, value_of
from wmtp.types import JSON

KeyPath: TypeAlias = tuple[str | int, ...]

MAX_BYTES = 2**18
MAX_VALUES = 10_000
_OVERRIDE = 10**9
"""Sorts what `--set` did behind the file's lines."""


class Place(NamedTuple):
    """Where a value was written: a line of the file, or a `--set`."""

    line: int
    text: str
    path: KeyPath = ()


class Problem(NamedTuple):
    """One thing that is wrong, as one line for a person."""

    line: int
    text: str


@dataclass
class Document:
    """Data of a recipe or config, where it stands, and what is wrong with it.

    Attributes:
        name: what the file is called in messages.
        data: sections and values.
        places: where the value at a key path was written.
        problems: all found so far.
        bad: key paths with a problem; checks that depend on one of them keep quiet.
    """

    name: str
    data: dict[str, JSON] = field(default_factory=dict[str, JSON])
    places: dict[KeyPath, Place] = field(default_factory=dict[KeyPath, Place])
    problems: list[Problem] = field(default_factory=list[Problem])
    bad: set[KeyPath] = field(default_factory=set[KeyPath])

    def report(self, path: KeyPath, text: str, shown: str | None = None) -> None:
        """Notes a problem with the value at `path`, which no check may rest on from now on."""
        self.note(path, text, shown)
        self.bad.add(_without_index(path))

    def note(self, path: KeyPath, text: str, shown: str | None = None) -> None:
        """Notes a problem with the value at `path`; `shown` stands for a value that is not in the data."""
        place = self._place(path)
        if shown is None and path and self.has(path):
            shown = show(self.get(path))
        what = "" if place.path == path else dotted(path) + (f" = {shown}" if shown else "")
        self.problems.append(Problem(place.line, ": ".join(filter(None, (place.text, what, text)))))

    def is_bad(self, path: KeyPath) -> bool:
        """Whether the value at `path`, or one that it is part of, has a problem."""
        return any(path[:n] in self.bad for n in range(len(path) + 1))

    def get(self, path: KeyPath) -> JSON:
        """The value at `path`, None where there is none."""
        value: JSON = self.data
        for key in path:
            if isinstance(value, dict):
                value = value.get(str(key))
            elif isinstance(value, list) and int(key) < len(value):
                value = value[int(key)]
            else:
                return None
        return value

    def has(self, path: KeyPath) -> bool:
        """Whether there is a value (null counts) at `path`."""
        parent = self.get(path[:-1])
        return (path[-1] in parent) if isinstance(parent, dict) else self.get(path) is not None

    def override(self, text: str, path: KeyPath, value: str) -> None:
        """Puts `value`, a YAML scalar or flow collection, over what stands at `path`; `text` is the user's."""
        path = _canonical(path)
        place = Place(_OVERRIDE + len(self.places), f"--set {show_text(text)}", path)
        section = self.data
        for depth, key in enumerate(path[:-1], 1):
            inner = section.get(str(key))
            if inner is None:
                inner = section[str(key)] = {}
                self.places[path[:depth]] = place
            if not isinstance(inner, dict):
                self.problems.append(Problem(place.line, f"{place.text}: {dotted(path[:depth])} is not a section"))
                return
            section = inner
        self.places = {p: where for p, where in self.places.items() if p[: len(path)] != path}
        self.places[path] = place
        try:
            node = parse(value)
            section[str(path[-1])] = None if node is None else _Reader(self, place).value(node, path)
        except UnreadableError as error:
            self.report(path, error.text)

    def _place(self, path: KeyPath) -> Place:
        nearest = (self.places.get(path[:n]) for n in range(len(path), -1, -1))
        return next(filter(None, nearest), Place(0, self.name))


def read_document(path: Path) -> Document:
    """The file at `path`; everything that is wrong with it is in the document's problems."""
    document = Document(printable(str(path)))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise UnreadableError(0, f"is larger than {MAX_BYTES // 1024} KiB; is it a settings file?")
        root = parse(raw.decode("utf-8-sig"))
        if root is None or (isinstance(root, yaml.ScalarNode) and root.value == ""):
            raise UnreadableError(0, "is empty; write the sections into it")
        if not isinstance(root, yaml.MappingNode):
            raise UnreadableError(root.start_mark.line + 1, "must hold sections such as `run:`, each with keys")
        data = _Reader(document).value(root, ())
        assert isinstance(data, dict)
        document.data = data
    except FileNotFoundError:
        document.report((), "there is no such file")
    except OSError as error:
        document.report((), f"can't be read: {(error.strerror or str(error)).lower()}")
    except UnicodeDecodeError as error:
        document.report((), f"is not UTF-8 text (byte {error.start}); save it as UTF-8")
    except UnreadableError as error:
        document.places = {(): Place(error.line, f"{document.name}:{error.line}" if error.line else document.name)}
        document.report((), error.text)
    return document


class _Reader:
    """Turns nodes into data, noting places and problems in the document."""

    def __init__(self, document: Document, place: Place | None = None) -> None:
        self.document = document
        self.place = place
        self.count = 0

    def value(self, node: yaml.Node, path: KeyPath) -> JSON:
        self.count += 1
        if self.count > MAX_VALUES or len(path) > MAX_DEPTH:  # aliases multiply, or hold themselves
            raise UnreadableError(node.start_mark.line + 1, "holds too many values; write it without aliases (*name)")
        if self.place is None and path and path not in self.document.places:
            self._note(path, node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)
        return self._mapping(node, path)

    def _note(self, path: KeyPath, node: yaml.Node) -> None:
        line = node.start_mark.line + 1
        self.document.places[path] = Place(line, f"{self.document.name}:{line}")

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> JSON:
        try:
            return value_of(node)
        except BadScalarError as error:
            self.document.report(path, str(error), shown=show_text(node.value))
            return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, JSON]:
        data: dict[str, JSON] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.report(path, f"line {line} has a key that is not plain text")
                continue
            key = str(_canonical((*path, encodable(key_node.value)))[-1])
            if key in data:
                other = "" if key == key_node.value else f"; `{key_node.value}` is another name for it"
                lines = f"lines {first[key]} and {line}" if first[key] != line else f"line {line}"
                self.document.report((*path, key), f"is given twice, on {lines}{other}; keep one", shown="")
                continue
            if self.place is None:
                self._note((*path, key), key_node)
            first[key] = line
            data[key] = self.value(value_node, (*path, key))
        return data


def dotted(path: KeyPath) -> str:
    """`data.train.sources[0]`."""
    simple = re.compile(r"[\w@-]+")
    parts = (
        f"[{key}]" if isinstance(key, int) else f".{key}" if simple.fullmatch(key) else f".{show(key)}" for key in path
    )
    return "".join(parts).removeprefix(".")


def show(value: JSON) -> str:
    """A value on one line, cut where it is long."""
    return show_text(json.dumps(value, ensure_ascii=False))


def show_text(text: str) -> str:
    """Text on one line, cut where it is long."""
    return printable(text if len(text) <= 80 else text[:77] + "...")


def printable(text: str) -> str:
    """Text on one line that any terminal can print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def encodable(key: str) -> str:
    """`key` with lone surrogates, which neither UTF-8 nor JSON can hold, spelt out."""
    return key.encode("utf-8", "backslashreplace").decode()


def _canonical(path: KeyPath) -> KeyPath:
    """`path` with the field's own name instead of its alias."""
    alias = ALIASES.get((str(path[0]), str(path[1]))) if len(path) == 2 else None
    return (path[0], alias) if alias else path


def _without_index(path: KeyPath) -> KeyPath:
    """The path of the list that holds the value, or `path` itself where it is in none."""
    return next((path[:n] for n, key in enumerate(path) if isinstance(key, int)), path)
