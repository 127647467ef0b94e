"""Settings: one tree, read once from a file and the environment, frozen; whatever is wrong stops the start, all faults named.

Variables begin with `AQUATINT__`, two underscores deep: Kubernetes sets names like `AQUATINT_ROUTER_PORT=tcp://...`
beside a service called "aquatint-router", which a strict single-underscore prefix would have to refuse.
"""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic_core import ErrorDetails

from common.image_origins import ImageOrigins
from common.settings_sources import Told, told
from common.upload_limits import UploadLimits

HOME_VARIABLE = "AQUATINT_HOME"
BOOTSTRAP_KEY_VARIABLE = "AQUATINT_BOOTSTRAP_KEY"
SECRET: JsonDict = {"secret": True}
"""`Field(json_schema_extra=SECRET)`: a value that is never shown."""


class SettingsError(Exception):
    """The environment does not make a valid configuration; the text lists every fault."""


class Section(BaseModel):
    """A part of the tree that one process reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CommonSettings(BaseModel):
    """What router, node and command line all need."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str | None] = None

    home: Path = Field(
        default_factory=lambda: user_data_path("aquatint"),
        description="Folder of the catalog, the assets and the keys. `AQUATINT_HOME` sets it too.",
    )
    database_url: str | None = Field(
        default=None,
        description="The catalog: `postgresql+asyncpg://...` or `sqlite+aiosqlite:///...`. SQLite in `home` when absent.",
    )
    database_password: str | None = Field(
        default=None,
        repr=False,
        json_schema_extra=SECRET,
        description="Password of the catalog's user, where `database_url` does not hold it.",
    )
    secret_key_file: Path | None = Field(
        default=None,
        description="File of the key that node tokens are encrypted with. `home`/secret.key, made once, when absent.",
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
        if self.database_url is None:
            return f"sqlite+aiosqlite:///{self.home / 'catalog.db'}"
        if self.database_password is None:
            return self.database_url
        from sqlalchemy import make_url

        return make_url(self.database_url).set(password=self.database_password).render_as_string(hide_password=False)

    @property
    def asset_store_url(self) -> str:
        """The asset store in use."""
        return self.assets_url or str(self.home / "assets")

    @cached_property
    def upload_limits(self) -> UploadLimits:
        """What an uploaded picture is held to. Asked for by every request, so made once."""
        return UploadLimits(self.max_upload_bytes, self.max_upload_pixels, self.max_upload_side_px)

    @cached_property
    def image_origins(self) -> ImageOrigins:
        """From where pictures named by URL are fetched. Asked for by every request, so read once."""
        return ImageOrigins.parse(self.image_url_origins, self.image_url_networks)

    @field_validator("database_url")
    @classmethod
    def _is_a_database(cls, url: str | None) -> str | None:
        if url is not None:
            from common.catalog.database import parse_url
            from common.errors import InvalidRequest

            try:
                parse_url(url)
            except InvalidRequest as error:
                raise ValueError(error.message) from None
        return url

    @model_validator(mode="after")
    def _origins_can_be_read(self) -> Self:
        # Reading them raises what is wrong with them.
        assert self.image_origins is not None
        return self

    @property
    def secret_key_path(self) -> Path:
        """The file of the key that node tokens are encrypted with."""
        return self.secret_key_file or self.home / "secret.key"

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Self:
        """Read the file and the environment; `overrides` (from the command line) win.

        Raises: SettingsError: unknown settings or wrong values, all of them at once.
        """
        settings, _ = cls.load_with_sources(environ, **overrides)
        return settings

    @classmethod
    def load_with_sources(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> tuple[Self, Told]:
        """The same, with the place each value came from. Raises: SettingsError."""
        found = told(cls, environ)
        if environ.get(HOME_VARIABLE):
            found.put(("home",), environ[HOME_VARIABLE], HOME_VARIABLE)
        values = found.values | {name: value for name, value in overrides.items() if value is not None}
        faults = list(found.faults)
        try:
            settings = cls(**values)
        except ValidationError as error:
            faults += [_fault(each, found) for each in error.errors(include_url=False, include_input=False)]
            raise SettingsError("\n".join(faults)) from None
        if faults:
            raise SettingsError("\n".join(faults))
        return settings, found

    def with_own(self, **given: Any) -> Self:
        """The same settings with some of this process's own section replaced, as by its command line.

        Raises: SettingsError: a value that is not valid, named by its option.
        """
        assert self.section is not None
        own = getattr(self, self.section)
        try:
            replaced = type(own).model_validate(own.model_dump() | given)
        except ValidationError as error:
            faults = [
                f"--{each['loc'][0]}: {each['msg']}" if each["loc"] else each["msg"]
                for each in error.errors(include_url=False, include_input=False)
            ]
            raise SettingsError("\n".join(faults)) from None
        return self.model_copy(update={self.section: replaced})


def _fault(error: ErrorDetails, found: Told) -> str:
    # A fault of several settings together stands nowhere in the tree; its text names them.
    where = f"{found.source_of(error['loc'])}: " if error["loc"] else ""
    return where + error["msg"]
