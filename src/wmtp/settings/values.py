"""Settings that are given on the command line alone, read as those of a file are (YAML 1.2)."""

from __future__ import annotations

from collections.abc import Sequence

from wmtp.errors import SettingsError
from wmtp.settings.document import Document, KeyPath, encodable, show_text
from wmtp.types import JSON


def read_values(overrides: Sequence[str]) -> dict[str, JSON]:
    """What `--set patience=20 --set rule.trend.window=0.2` says: a mapping of settings.

    Raises:
        SettingsError: lists all that can't be read.
    """
    document, malformed = Document("--set"), list[str]()
    for text in overrides:
        key, equals, value = text.partition("=")
        path: KeyPath = tuple(encodable(part.strip()) for part in key.split("."))
        if equals and all(path):
            document.override(text, path, value)
        else:
            malformed.append(f"--set {show_text(text)}: must look like patience=20")
    if problems := malformed + [problem.text for problem in document.problems]:
        raise SettingsError("\n".join(problems))
    return document.data


def read_value(option: str, text: str) -> JSON:
    """The YAML value that `--option text` gives.

    Raises:
        SettingsError: can't be read.
    """
    document, key = Document(option), option.lstrip("-")
    document.override(text, (key,), text)
    if document.problems:
        # A document says "--set TEXT: key = value: what is wrong" of everything that no file has.
        problems = [problem.text.replace("--set", option, 1) for problem in document.problems]
        raise SettingsError("\n".join(problems))
    return document.data[key]
