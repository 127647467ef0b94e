"""Models by their public names, the files they are made of, and other names for them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import selectinload

from common.catalog.database import Database
from common.catalog.ids import new_id
from common.catalog.records import ModelFile, ModelRecord
from common.catalog.tables import Model, ModelAlias, ModelFileRow
from common.clock import utc_now
from common.errors import InvalidRequest, NotFound

ModelRecords = list[ModelRecord]


class Models:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def upsert(
        self,
        *,
        name: str,
        family: str,
        profile: str | None,
        licence: str | None,
        capabilities: Mapping[str, Any],
        files: Sequence[ModelFile],
    ) -> ModelRecord:
        """Record a model, or replace what is known of it; its id stays."""
        new = {"family": family, "profile": profile, "licence": licence, "capabilities": dict(capabilities)}
        async with self._db.write() as session:
            row = {"id": new_id("mdl"), "name": name, "created_at": utc_now(), **new}
            await self._db.insert_absent(session, Model, [row])
            model = (await session.scalars(select(Model).where(Model.name == name).with_for_update())).one()
            for column, value in new.items():
                setattr(model, column, value)
            await session.execute(delete(ModelFileRow).where(ModelFileRow.model_id == model.id))
            await self._db.insert_absent(session, ModelFileRow, [{"model_id": model.id, **asdict(file)} for file in files])
            await session.flush()
            session.expire(model)
            return _record((await session.scalars(_select_models().where(Model.name == name))).one())

    async def get(self, name: str) -> ModelRecord:
        """One model by its name. Raises: NotFound."""
        async with self._db.read() as session:
            model = (await session.scalars(_select_models().where(Model.name == name))).one_or_none()
        if model is None:
            raise NotFound(f"There is no model {name!r}.", code="model_not_found")
        return _record(model)

    async def set_alias(self, alias: str, model: str) -> None:
        """Point `alias` at a model's name, which nodes may know although the catalog does not.

        Raises: InvalidRequest: the alias would lead to itself or to another alias.
        """
        async with self._db.write() as session:
            if alias == model or await session.get(ModelAlias, model) is not None:
                raise InvalidRequest(f"An alias leads to a model, and {model!r} is an alias.", param="model")
            await self._db.insert_absent(session, ModelAlias, [{"alias": alias, "model": model}])
            await session.execute(update(ModelAlias).where(ModelAlias.alias == alias).values(model=model))

    async def remove_alias(self, alias: str) -> None:
        """Raises: NotFound."""
        async with self._db.write() as session:
            found = await session.get(ModelAlias, alias)
            if found is None:
                raise NotFound(f"There is no alias {alias!r}.", code="alias_not_found")
            await session.delete(found)

    async def aliases(self) -> dict[str, str]:
        """alias -> model."""
        async with self._db.read() as session:
            return {row.alias: row.model for row in await session.scalars(select(ModelAlias).order_by(ModelAlias.alias))}

    async def list(self) -> ModelRecords:
        """All models, by name."""
        async with self._db.read() as session:
            return [_record(model) for model in await session.scalars(_select_models().order_by(Model.name))]


def _select_models() -> Select[Model]:
    return select(Model).options(selectinload(Model.files))


def _record(model: Model) -> ModelRecord:
    return ModelRecord(
        id=model.id,
        name=model.name,
        family=model.family,
        profile=model.profile,
        licence=model.licence,
        capabilities=model.capabilities,
        files=tuple(
            ModelFile(path=f.path, format=f.format, size_bytes=f.size_bytes, sha256=f.sha256, autov2=f.autov2)
            for f in model.files
        ),
        created_at=model.created_at,
    )
