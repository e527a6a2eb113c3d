"""Recipe and config: what they may hold, and how they are read."""

from wmtp.settings.config import Config, DatasetSplits
from wmtp.settings.load import (
    Settings,
    check_settings,
    dump_yaml,
    load_config,
    load_recipe,
    load_settings,
)
from wmtp.settings.recipe import DataPart, Recipe
from wmtp.settings.schema import json_schema

__all__ = [
    "Config",
    "DataPart",
    "DatasetSplits",
    "Recipe",
    "Settings",
    "check_settings",
    "dump_yaml",
    "json_schema",
    "load_config",
    "load_recipe",
    "load_settings",
]
