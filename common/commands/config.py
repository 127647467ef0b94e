"""`aquatint config`: is what an operator has set valid, and what is in force?"""

import json
import os
from importlib.metadata import entry_points
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from common.commands.output import JsonOption, show
from common.settings import CommonSettings, SettingsError
from common.settings_sources import CONFIG_VARIABLE, SECTIONS, Place, Told, places, variable

app = typer.Typer(no_args_is_help=True, help="Settings: check them, show what is in force.")
GROUP = "aquatint.settings"
MASK = "***"


@app.command("check")
def check() -> None:
    """Read the settings of router and node; exit code 2 with every fault named if they are not valid."""
    trees = [(tree, found) for tree, _, found in _loaded()]
    said = sorted({source for _, found in trees for source in found.sources.values()})
    path = os.environ.get(CONFIG_VARIABLE)
    typer.echo(f"The settings are valid: {len(said)} set" + (f", with the file {path}." if path else "."))


@app.command("show")
def show_settings(as_json: JsonOption = False) -> None:
    """Every setting with its value in force and where that came from. Secrets are masked."""
    rows: dict[Place, dict[str, str]] = {}
    for _, settings, found in _loaded():
        for place, info in places(type(settings)):
            source = found.sources.get(place, "default")
            rows[place] = {"setting": variable(place), "value": _shown(settings, place, info), "source": source}
    show(list(rows.values()), {"setting": "setting", "value": "value", "from": "source"}, as_json=as_json, empty="")


def _loaded() -> list[tuple[str, CommonSettings, Told]]:
    """Each process's tree. Raises: SettingsError: faults of all trees, each once."""
    loaded, faults = [], dict[str, None]()
    found = sorted(entry_points(group=GROUP), key=lambda entry: SECTIONS.index(entry.name))
    for entry in found:
        tree: type[CommonSettings] = entry.load()
        try:
            settings, sources = tree.load_with_sources()
        except SettingsError as error:
            faults |= dict.fromkeys(str(error).splitlines())
        else:
            loaded.append((entry.name, settings, sources))
    if faults:
        raise SettingsError("\n".join(faults))
    return loaded


def _shown(settings: BaseModel, place: Place, info: FieldInfo) -> str:
    value: Any = settings
    for part in place:
        value = getattr(value, part)
    if value is None:
        return ""
    if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("secret"):
        return MASK
    if place == ("database_url",):
        from sqlalchemy import make_url

        return make_url(value).render_as_string(hide_password=True)
    return json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
