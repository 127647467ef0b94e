"""API keys. A secret is 256 random bits and shown once; the catalog keeps its SHA-256 and first characters.

A plain hash, not a slow one: nobody guesses 256 bits, and every request pays for the check.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from common.catalog.database import Database
from common.catalog.ids import new_id
from common.catalog.records import KeyRecord, Limits
from common.catalog.shared_reads import SharedReads
from common.catalog.tables import ApiKey
from common.clock import utc_now
from common.errors import CatalogUnavailable, Conflict, InvalidRequest, NotFound

SECRET_PREFIX = "aq_"
SCOPES = frozenset({"user", "admin", "join", "join-approved"})
"""What a key opens: pictures, all of it, or a node's way into the fleet, with or without an operator's word."""
MIN_SECRET_LENGTH = 16
SHOWN_CHARACTERS = 8
LAST_USED_EVERY = timedelta(minutes=1)
FRESH_S = 2.0
"""How long a key that was found good is taken for good without asking: what another process revokes works that long."""

_NOBODYS = "0" * 64
NO_LIMITS = Limits()

KeyRecords = list[KeyRecord]


class Keys:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._good: dict[str, tuple[KeyRecord, float]] = {}
        """digest -> (the key, until when on the monotonic clock it need not be asked for). Good keys only: bounded."""
        self._reads = SharedReads(self._read)
        self._changes = 0
        """What was read before a change of a key is not kept after it."""

    async def create(
        self,
        *,
        name: str,
        scopes: Collection[str],
        expires_at: datetime | None = None,
        secret: str | None = None,
        limits: Limits = NO_LIMITS,
    ) -> tuple[KeyRecord, str]:
        """Make a key. secret: what the operator wants it to be; drawn when absent.

        Returns: the key, and its secret for the only time.
        Raises: InvalidRequest: a secret that is too short, unknown scopes or none. Conflict: an active key has the name,
        or any key has the secret.
        """
        if not scopes or set(scopes) - SCOPES:
            raise InvalidRequest(f"The scopes of a key are of {', '.join(sorted(SCOPES))}.", param="scopes")
        if secret is not None and len(secret) < MIN_SECRET_LENGTH:
            raise InvalidRequest(f"A key has at least {MIN_SECRET_LENGTH} characters; got {len(secret)}.", param="secret")
        secret = secret or SECRET_PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(
            id=new_id("key"),
            name=name,
            prefix=secret[:SHOWN_CHARACTERS],
            secret_sha256=_digest(secret),
            scopes=sorted(scopes),
            created_at=utc_now(),
            expires_at=expires_at,
            last_used_at=None,
            revoked_at=None,
            limits=_stored(limits),
        )
        async with self._db.write() as session:
            session.add(key)
            try:
                await session.flush()
            except IntegrityError as error:
                raise Conflict(f"There is an active key {name!r} already, or a key with this secret.") from error
        return _record(key), secret

    async def authenticate(self, secret: str) -> KeyRecord | None:
        """Whose secret this is; None when it is unknown, expired or revoked, which takes the same path."""
        digest = _digest(secret)
        known, until_s = self._good.get(digest, (None, 0.0))
        if known is not None and time.monotonic() < until_s and (known.expires_at is None or utc_now() < known.expires_at):
            return known
        self._good.pop(digest, None)
        return await self._reads.get(digest)

    async def _read(self, digest: str) -> KeyRecord | None:
        now, changes = utc_now(), self._changes
        async with self._db.read() as session:
            key = await session.scalar(select(ApiKey).where(ApiKey.secret_sha256 == digest))
        same = hmac.compare_digest(digest, _NOBODYS if key is None else key.secret_sha256)
        if key is None or not same or not _valid(key, now):
            return None
        if key.last_used_at is None or now - key.last_used_at >= LAST_USED_EVERY:
            await self._note_used(key.id, now)
        found = _record(key)
        if changes == self._changes:
            self._good[digest] = found, time.monotonic() + FRESH_S
        return found

    async def _note_used(self, key_id: str, now: datetime) -> None:
        stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= now - LAST_USED_EVERY)
        try:
            async with self._db.write() as session:
                await session.execute(update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=now))
        except CatalogUnavailable:
            # Only a note for the operator: a request with a good key must not fail by it.
            return

    async def limit(self, name_or_id: str, limits: Limits) -> KeyRecord:
        """Replace what a key is limited to. Raises: NotFound."""
        async with self._db.write() as session:
            key = await _found(session, name_or_id)
            key.limits = _stored(limits)
        self._forget()
        return _record(key)

    async def revoke(self, name_or_id: str) -> KeyRecord:
        """Make a key useless from now on: by its id, or the active one of that name. Raises: NotFound."""
        async with self._db.write() as session:
            key = await _found(session, name_or_id)
            key.revoked_at = key.revoked_at or utc_now()
        self._forget()
        return _record(key)

    def _forget(self) -> None:
        self._changes += 1
        self._good.clear()
        self._reads.forget()

    async def count(self) -> int:
        """How many keys are not revoked."""
        async with self._db.read() as session:
            query = select(func.count()).select_from(ApiKey).where(ApiKey.revoked_at.is_(None))
            return (await session.scalars(query)).one()

    async def list(self) -> KeyRecords:
        """All keys, revoked ones too, oldest first."""
        async with self._db.read() as session:
            return [_record(key) for key in await session.scalars(select(ApiKey).order_by(ApiKey.id))]


async def _found(session: AsyncSession, name_or_id: str) -> ApiKey:
    """A key by its id, or the active one of that name. Raises: NotFound."""
    active = (ApiKey.name == name_or_id) & ApiKey.revoked_at.is_(None)
    found = (await session.scalars(select(ApiKey).where(or_(ApiKey.id == name_or_id, active)))).all()
    if not found:
        raise NotFound(f"There is no active key {name_or_id!r}.", code="key_not_found")
    return next((each for each in found if each.id == name_or_id), found[0])


def _stored(limits: Limits) -> dict[str, Any] | None:
    return {name: value for name, value in asdict(limits).items() if value is not None} or None


def _digest(secret: str) -> str:
    # Headers may hold any bytes; a key that is not text is just an unknown key.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _valid(key: ApiKey, now: datetime) -> bool:
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)


def _record(key: ApiKey) -> KeyRecord:
    return KeyRecord(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        scopes=frozenset(key.scopes),
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        revoked_at=key.revoked_at,
        limits=Limits(**(key.limits or {})),
    )
