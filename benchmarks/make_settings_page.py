"""Write docs/settings.md from the JSON Schema, so that the page can't drift from the code (a test compares)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmtp.settings import json_schema

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def rows(schema: dict[str, Any], node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key path, default, description) of every setting."""
    for key, value in node["properties"].items():
        options = value.get("anyOf", [value])
        inner = next((o["$ref"].split("/")[-1] for o in options if "$ref" in o), None)
        section = schema["$defs"][inner] if inner else None
        if section and "properties" in section and inner != "DatasetSplits":
            yield from rows(schema, section, f"{prefix}{key}.")
        else:
            default = f"`{json.dumps(value['default'])}`" if "default" in value else "required"
            choices = section if section else value
            allowed = choices.get("enum", choices.get("items", {}).get("enum"))
            words = f" ({', '.join(f'`{word}`' for word in allowed)})" if allowed else ""
            yield f"{prefix}{key}", default, value.get("description", "") + words


def page() -> str:
    text = "# Settings\n\nMade by `benchmarks/make_settings_page.py` from the JSON Schema (`wmtp schema`).\n"
    for name, schema in json_schema().items():
        text += f"\n## {name.capitalize()}\n\n| setting | default | meaning |\n|---|---|---|\n"
        for key, default, meaning in rows(schema, schema):
            text += f"| `{key}` | {default} | {' '.join(meaning.split())} |\n".replace("`null`", "none")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
