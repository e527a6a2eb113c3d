"""Reads recipe and config, with everything that is wrong with either reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from pydantic import BaseModel

from wmtp.errors import SettingsError
from wmtp.settings.checks import Finding, check_both, check_config, check_recipe
from wmtp.settings.config import Config
from wmtp.settings.document import Document, KeyPath, Problem, encodable, read_document, show_text
from wmtp.settings.explain import nearest
from wmtp.settings.recipe import Recipe
from wmtp.settings.validate import validate
from wmtp.settings.yaml12 import dump


@dataclass(frozen=True)
class Settings:
    """A recipe and a config that are valid, and fit each other."""

    recipe: Recipe
    config: Config

    @property
    def save_interval(self) -> int:
        """Steps between two checkpoints: the config's word, if it has one, wins over the recipe's."""
        return self.config.paths.checkpoints.save_interval or self.recipe.train.save_interval


def load_settings(
    recipe_path: str | PathLike[str],
    config_path: str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> Settings:
    """Both files, with `overrides` ("loss.lambda=0.5", first key decides the file) put over them.

    Raises:
        SettingsError: all problems of both files, one a line: place, key path, value, what is wrong, cure.
    """
    recipe_file, config_file = _read(recipe_path, "recipe"), _read(config_path, "config")
    stray = _override(overrides, {Recipe: recipe_file, Config: config_file})
    recipe, config = validate(Recipe, recipe_file), validate(Config, config_file)
    _report(check_recipe(recipe), recipe_file)
    _report(check_config(config), config_file)
    _report(check_both(recipe, config), recipe_file, config_file)
    _raise_problems(recipe_file, config_file, stray=stray)
    return Settings(recipe, config)


def load_recipe(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe alone.

    Raises:
        SettingsError: lists all its problems.
    """
    file = _read(path, "recipe")
    stray = _override(overrides, {Recipe: file})
    recipe = validate(Recipe, file)
    _report(check_recipe(recipe), file)
    _raise_problems(file, stray=stray)
    return recipe


def load_config(path: str | PathLike[str] | None = None, overrides: Sequence[str] = ()) -> Config:
    """The config alone; without a path the defaults.

    Raises:
        SettingsError: lists all its problems.
    """
    file = _read(path, "config")
    stray = _override(overrides, {Config: file})
    config = validate(Config, file)
    _report(check_config(config), file)
    _raise_problems(file, stray=stray)
    return config


def check_settings(recipe: Recipe, config: Config) -> Settings:
    """Settings from models that were made in Python, with the same checks.

    Raises:
        SettingsError: lists all problems.
    """
    recipe_file = Document("recipe", recipe.model_dump(mode="json", by_alias=True))
    config_file = Document("config", config.model_dump(mode="json", by_alias=True))
    _report(check_recipe(recipe), recipe_file)
    _report(check_config(config), config_file)
    _report(check_both(recipe, config), recipe_file, config_file)
    _raise_problems(recipe_file, config_file)
    return Settings(recipe, config)


def dump_yaml(settings: Recipe | Config) -> str:
    """The complete settings, defaults written out; loads back to an equal model."""
    return dump(settings.model_dump(mode="json", by_alias=True))


def _read(path: str | PathLike[str] | None, name: str) -> Document:
    return Document(name) if path is None else read_document(Path(path))


def _override(overrides: Iterable[str], files: dict[type[BaseModel], Document]) -> list[Problem]:
    """Puts each override into the file that its first key belongs to; returns the others' problems."""
    stray: list[Problem] = []
    owners = {key: file for kind, file in files.items() for key in kind.model_fields}
    for text in overrides:
        key_text, equals, value = text.partition("=")
        path: KeyPath = tuple(encodable(key.strip()) for key in key_text.split("."))
        if owner := owners.get(str(path[0])) if equals and all(path) else None:
            owner.override(text, path, value)
            continue
        if not equals or not all(path):
            fault = "must look like train.max_steps=100"
        elif near := nearest(str(path[0]), list(owners)):
            fault = f"unknown key {show_text(str(path[0]))}, did you mean `{near}`?"
        else:
            fault = f"unknown key {show_text(str(path[0]))}; there are {', '.join(owners)}"
        stray.append(Problem(0, f"--set {show_text(text)}: {fault}"))
    return stray


def _report(findings: Iterator[Finding], file: Document, config: Document | None = None) -> None:
    """Adds those findings that rest on nothing that has a problem itself."""
    for finding in findings:
        doubtful = any(file.is_bad(path) for path in (finding.path, *finding.also))
        if not doubtful and not (config and finding.config and config.is_bad(finding.config)):
            file.note(finding.path, finding.text)


def _raise_problems(*files: Document, stray: Sequence[Problem] = ()) -> None:
    problems = [
        *stray,
        *(problem for file in files for problem in sorted(file.problems, key=lambda p: p.line)),
    ]
    if problems:
        raise SettingsError("\n".join(problem.text for problem in problems))
