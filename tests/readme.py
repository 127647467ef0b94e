"""README's tables, made from the code. `python -m tests.readme` writes them; a test fails when README has fallen behind."""

import re
from pathlib import Path

from common.images_api.fields import FIELDS
from common.images_api.request import Task
from common.settings import CommonSettings, Section
from common.settings_sources import PREFIX
from node.settings import NodeSettings
from router.headers import OF_ANSWERS, OF_REQUESTS
from router.settings import RouterSettings

README = Path(__file__).parent.parent / "README.md"
OF_THE_MACHINE = {"home": "the platform's data folder", "name": "the host's name"}
"""Defaults that differ from machine to machine, in words."""


def settings_table() -> str:
    """Every variable with its default and meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += _rows(CommonSettings, "", skip=set())
    for settings in (RouterSettings, NodeSettings):
        section = settings.section
        assert section is not None
        kind = settings.model_fields[section].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        rows += _rows(kind, f"{section.upper()}__", skip=set())
    return "\n".join(rows)


def _rows(kind: type[CommonSettings] | type[Section], prefix: str, skip: set[str]) -> list[str]:
    rows = []
    for name, field in kind.model_fields.items():
        if name in skip:
            continue
        if name in OF_THE_MACHINE:
            shown = OF_THE_MACHINE[name]
        else:
            default = field.get_default(call_default_factory=True, validated_data={})
            shown = "" if default in (None, []) else f"`{default}`"
        rows.append(f"| `{PREFIX}{prefix}{name.upper()}` | {shown} | {field.description} |")
    return rows


def fields_table() -> str:
    """Every field of a generation."""
    rows = ["| field | values | meaning |", "|---|---|---|"]
    for field in FIELDS:
        if Task.GENERATION in field.tasks:
            also = f" (also {', '.join(f'`{alias}`' for alias in field.aliases)})" if field.aliases else ""
            rows.append(f"| `{field.name}`{also} | {field.kind.describe()} | {field.meaning} |")
    return "\n".join(rows)


def headers_table() -> str:
    """Headers of requests and of answers."""
    rows = ["| header | of | meaning |", "|---|---|---|"]
    rows += [f"| `{name}` | request | {meaning} |" for name, meaning in OF_REQUESTS.items()]
    rows += [f"| `{name}` | answer | {meaning} |" for name, meaning in OF_ANSWERS.items()]
    return "\n".join(rows)


TABLES = {"settings": settings_table, "fields": fields_table, "headers": headers_table}


def refreshed(text: str) -> str:
    """`text` with its tables as the code has them."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, make=make: match[1] + make() + match[2], text)  # type: ignore[misc]
        assert count == 1, f"README has no place for the table {name!r}"
    return text


if __name__ == "__main__":
    README.write_text(refreshed(README.read_text()))
