"""API keys: who gets in, who does not, and that the catalog does not know their secrets."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.catalog import Catalog, Limits
from common.catalog.database import make_engine, parse_url
from common.catalog.tables import ApiKey, Node
from common.errors import Conflict, InvalidRequest, NotFound


async def dump(url: str) -> str:
    """Every value of the tables that hold secrets, as the database has it."""
    engine = make_engine(parse_url(url))
    async with engine.connect() as connection:
        rows = [(await connection.execute(table.__table__.select())).all() for table in (ApiKey, Node)]
    await engine.dispose()
    return str(rows)


def stored_bytes(folder: Path) -> bytes:
    """All that SQLite wrote, its log too."""
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file())


async def test_a_key_lets_in_whoever_has_its_secret(catalog: Catalog):
    record, secret = await catalog.keys.create(name="laptop", scopes={"user"})

    found = await catalog.keys.authenticate(secret)

    assert found is not None
    assert (found.id, found.name, found.scopes) == (record.id, "laptop", {"user"})
    assert secret.startswith("aq_")
    assert len(secret) == 46
    assert secret.startswith(record.prefix)
    assert await catalog.keys.authenticate(secret[:-1]) is None
    assert await catalog.keys.authenticate(secret + "\udcff") is None
    assert await catalog.keys.authenticate("") is None


async def test_the_database_never_holds_a_secret(catalog: Catalog, catalog_url: str, tmp_path: Path):
    _, secret = await catalog.keys.create(name="laptop", scopes={"user"})
    await catalog.nodes.add(name="left", url="http://left", token="very-secret-token")

    rows = await dump(catalog_url)

    assert "laptop" in rows
    assert secret not in rows
    assert "very-secret-token" not in rows
    files = stored_bytes(tmp_path)
    assert secret.encode() not in files
    assert b"very-secret-token" not in files


async def test_a_revoked_key_is_worth_nothing_and_its_name_is_free_again(catalog: Catalog):
    record, secret = await catalog.keys.create(name="laptop", scopes={"user"})

    revoked = await catalog.keys.revoke("laptop")
    again, _ = await catalog.keys.create(name="laptop", scopes={"user"})

    assert revoked.revoked_at is not None
    assert await catalog.keys.authenticate(secret) is None
    assert await catalog.keys.revoke(record.id) == revoked
    assert await catalog.keys.count() == 1
    assert [key.id for key in await catalog.keys.list()] == [record.id, again.id]
    with pytest.raises(NotFound):
        await catalog.keys.revoke("desktop")


async def test_an_expired_key_is_worth_nothing(catalog: Catalog):
    soon, past = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) - timedelta(seconds=1)
    _, fresh = await catalog.keys.create(name="fresh", scopes={"user"}, expires_at=soon)
    _, stale = await catalog.keys.create(name="stale", scopes={"user"}, expires_at=past)

    assert await catalog.keys.authenticate(fresh) is not None
    assert await catalog.keys.authenticate(stale) is None


async def test_the_last_use_is_noted_once_a_minute(catalog: Catalog):
    _, secret = await catalog.keys.create(name="laptop", scopes={"user"})

    await catalog.keys.authenticate(secret)
    first = (await catalog.keys.list())[0].last_used_at
    await catalog.keys.authenticate(secret)

    assert first is not None
    assert (await catalog.keys.list())[0].last_used_at == first


async def test_the_operator_may_choose_a_secret_but_not_a_short_one(catalog: Catalog):
    _, secret = await catalog.keys.create(name="admin", scopes={"admin"}, secret="sixteen-letters!")

    assert await catalog.keys.authenticate("sixteen-letters!") is not None
    assert secret == "sixteen-letters!"
    with pytest.raises(InvalidRequest):
        await catalog.keys.create(name="other", scopes={"admin"}, secret="fifteen-letters")
    with pytest.raises(Conflict):
        await catalog.keys.create(name="other", scopes={"admin"}, secret="sixteen-letters!")


@pytest.mark.parametrize("scopes", [[], ["root"], ["user", "root"]])
async def test_scopes_are_of_those_that_exist(scopes: list[str], catalog: Catalog):
    with pytest.raises(InvalidRequest):
        await catalog.keys.create(name="laptop", scopes=scopes)


async def test_two_active_keys_do_not_share_a_name(catalog: Catalog):
    await catalog.keys.create(name="laptop", scopes={"user"})

    with pytest.raises(Conflict):
        await catalog.keys.create(name="laptop", scopes={"user"})


async def test_a_key_revoked_here_is_refused_at_once_although_it_was_just_found_good(catalog: Catalog):
    _, secret = await catalog.keys.create(name="app", scopes=["user"])
    assert await catalog.keys.authenticate(secret) is not None
    assert await catalog.keys.authenticate(secret) is not None

    await catalog.keys.revoke("app")

    assert await catalog.keys.authenticate(secret) is None


async def test_new_limits_of_a_key_count_from_its_next_request(catalog: Catalog):
    _, secret = await catalog.keys.create(name="app", scopes=["user"])
    assert (await catalog.keys.authenticate(secret)) is not None

    await catalog.keys.limit("app", Limits(images_per_day=3))

    key = await catalog.keys.authenticate(secret)
    assert key is not None
    assert key.limits.images_per_day == 3
