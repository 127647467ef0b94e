"""Settings: read once from the environment, frozen; one wrong or misspelt variable stops the start with all faults named.

Variables begin with `AQUATINT__`, two underscores deep: Kubernetes sets names like `AQUATINT_ROUTER_PORT=tcp://...`
beside a service called "aquatint-router", which a strict single-underscore prefix would have to refuse.
"""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.image_origins import ImageOrigins
from common.upload_limits import UploadLimits

PREFIX = "AQUATINT__"
HOME_VARIABLE = "AQUATINT_HOME"
BOOTSTRAP_KEY_VARIABLE = "AQUATINT_BOOTSTRAP_KEY"
SECTIONS = ("router", "node")
"""Sections of the tree; a process reads its own and leaves the others' to them."""


class SettingsError(Exception):
    """The environment does not make a valid configuration; the text lists every fault."""


class Section(BaseModel):
    """A part of the tree that one process reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CommonSettings(BaseSettings):
    """What router, node and command line all need."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid")
    section: ClassVar[str | None] = None

    home: Path = Field(
        default_factory=lambda: user_data_path("aquatint"),
        description="Folder of the catalog, the assets and the keys. `AQUATINT_HOME` sets it too.",
    )
    database_url: str | None = Field(
        default=None,
        description="The catalog: `postgresql+asyncpg://...` or `sqlite+aiosqlite:///...`. SQLite in `home` when absent.",
    )
    assets_url: str | None = Field(
        default=None,
        description="Where picture bytes live: a folder or `s3://bucket/prefix`. `home`/assets when absent.",
    )
    public_url: str | None = Field(
        default=None, description="Base of the URLs clients can reach. The address they called when absent."
    )
    max_upload_bytes: int = Field(
        default=4 * 1024 * 1024, ge=1024, le=50 * 1024 * 1024, description="Largest picture a client may upload, in bytes."
    )
    max_upload_pixels: int = Field(default=16_777_216, ge=4096, description="Largest picture a client may upload, in pixels.")
    max_upload_side_px: int = Field(default=8192, ge=64, le=65535, description="Longest side of an uploaded picture.")
    image_url_origins: list[str] = Field(
        default_factory=list,
        description="Origins from which JSON edits may name pictures by URL, as a JSON list: `https://a.example`, "
        "`https://*.example`. None: only data URLs are taken.",
    )
    image_url_networks: list[str] = Field(
        default_factory=list,
        description="Networks (CIDR) whose private addresses may be fetched from all the same, as a JSON list.",
    )
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error.")
    log_format: str = Field(
        default="auto", pattern="^(auto|json|console)$", description="json, console, or auto: console on a terminal."
    )

    @property
    def catalog_url(self) -> str:
        """The database in use."""
        return self.database_url or f"sqlite+aiosqlite:///{self.home / 'catalog.db'}"

    @property
    def asset_store_url(self) -> str:
        """The asset store in use."""
        return self.assets_url or str(self.home / "assets")

    @property
    def upload_limits(self) -> UploadLimits:
        """What an uploaded picture is held to."""
        return UploadLimits(self.max_upload_bytes, self.max_upload_pixels, self.max_upload_side_px)

    @cached_property
    def image_origins(self) -> ImageOrigins:
        """From where pictures named by URL are fetched. Asked for by every request, so read once."""
        return ImageOrigins.parse(self.image_url_origins, self.image_url_networks)

    @model_validator(mode="after")
    def _origins_can_be_read(self) -> Self:
        # Reading them raises what is wrong with them.
        assert self.image_origins is not None
        return self

    @property
    def secret_key_path(self) -> Path:
        """The file of the key that node tokens are encrypted with."""
        return self.home / "secret.key"

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Self:
        """Read the environment; `overrides` (from the command line) win.

        Raises: SettingsError: unknown variables or wrong values, all of them at once.
        """
        faults = [f"{name}: no such setting" for name in _unknown(cls, environ)]
        values = {name: value for name, value in overrides.items() if value is not None}
        if HOME_VARIABLE in environ:
            values.setdefault("home", environ[HOME_VARIABLE])
        try:
            settings = cls(**values)
        except ValidationError as error:
            faults += [f"{_variable(e['loc'])}: {e['msg']}" for e in error.errors(include_url=False, include_input=False)]
            raise SettingsError("\n".join(faults)) from None
        if faults:
            raise SettingsError("\n".join(faults))
        return settings


def _variable(location: tuple[int | str, ...]) -> str:
    return PREFIX + "__".join(str(part).upper() for part in location)


def _unknown(cls: type[CommonSettings], environ: Mapping[str, str]) -> list[str]:
    """Variables under our prefix that name nothing: misspelt ones would else be ignored in silence."""
    unknown = []
    for name in environ:
        if not name.upper().startswith(PREFIX):
            continue
        first, _, rest = name.upper().removeprefix(PREFIX).lower().partition("__")
        if first in SECTIONS:
            section = cls.model_fields.get(first)
            fields = getattr(section.annotation, "model_fields", {}) if section else None
            if fields is not None and rest.partition("__")[0] not in fields:
                unknown.append(name)
        elif first not in CommonSettings.model_fields:
            unknown.append(name)
    return sorted(unknown)
