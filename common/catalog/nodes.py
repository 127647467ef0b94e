"""The nodes that an operator registered, and those that joined by themselves."""

import hmac
from enum import Enum
from typing import Final

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from common.catalog.database import Database
from common.catalog.encryption import TokenCipher
from common.catalog.ids import new_id
from common.catalog.records import NodeRecord, NodeState
from common.catalog.tables import Node
from common.clock import utc_now
from common.errors import Conflict, InvalidRequest, NotFound

NodeRecords = list[NodeRecord]


class Keep(Enum):
    """Stands for "leave it as it is" where None means "none"."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


class Nodes:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database, cipher: TokenCipher) -> None:
        self._db = database
        self._cipher = cipher

    async def add(
        self, *, name: str, url: str, token: str | None, state: str = NodeState.PENDING, max_concurrency: int = 1
    ) -> NodeRecord:
        """Register a node.

        Raises: Conflict: another node has the name or the URL. InvalidRequest: a token, but no secret key to encrypt it.
        """
        node = self._new(name, url, token, state=_state(state), max_concurrency=_positive(max_concurrency), approved=True)
        async with self._db.write() as session:
            session.add(node)
            await _flush(session, name, url)
        return self._record(node)

    async def join(self, *, name: str, url: str, token: str, approved: bool) -> NodeRecord:
        """A node tells of itself, once more at each start. approved: it may have runs without an operator's word.

        Raises: Conflict: a node of this name is known with another token, or another node has the URL. InvalidRequest:
        there is no secret key to encrypt the token with.
        """
        async with self._db.write() as session:
            node = await session.scalar(select(Node).where(Node.name == name))
            if node is None:
                node = self._new(name, url, token, state=NodeState.PENDING, max_concurrency=1, approved=approved)
                session.add(node)
            elif not hmac.compare_digest(
                (self._cipher.decrypt(node.token_encrypted, node=name) or "").encode(), token.encode()
            ):
                # Whoever may join must not be able to take another node's place.
                raise Conflict(
                    f"A node named {name!r} is known with another token. Give this one another name, or have that one removed.",
                    code="node_known",
                )
            node.url = url
            if approved:
                node.approved_at = node.approved_at or utc_now()
            await _flush(session, name, url)
        return self._record(node)

    async def approve(self, name_or_id: str) -> NodeRecord:
        """Let a node that joined have runs. Raises: NotFound."""
        async with self._db.write() as session:
            node = await _find(session, name_or_id)
            node.approved_at = node.approved_at or utc_now()
        return self._record(node)

    def _new(self, name: str, url: str, token: str | None, *, state: NodeState, max_concurrency: int, approved: bool) -> Node:
        now = utc_now()
        return Node(
            id=new_id("node"),
            name=name,
            url=url,
            token_encrypted=self._cipher.encrypt(token),
            state=state,
            max_concurrency=max_concurrency,
            last_seen_at=None,
            last_error=None,
            created_at=now,
            approved_at=now if approved else None,
        )

    async def get(self, name_or_id: str) -> NodeRecord:
        """One node. Raises: NotFound."""
        async with self._db.read() as session:
            return self._record(await _find(session, name_or_id))

    async def remove(self, name_or_id: str) -> None:
        """Forget a node; its runs stay. Raises: NotFound."""
        async with self._db.write() as session:
            await session.delete(await _find(session, name_or_id))

    async def set_state(self, name_or_id: str, state: str, *, error: str | None = None, seen: bool = False) -> None:
        """An operator's word on a node. error: why, None clears it. seen: it answered just now. Raises: NotFound."""
        await self._set_state(name_or_id, _state(state), error=error, seen=seen, overrule=True)

    async def note_health(self, name_or_id: str, state: str, *, error: str | None = None, seen: bool = False) -> None:
        """A router's view of a node. An operator's `draining` stays: the router may not have heard of it yet."""
        await self._set_state(name_or_id, _state(state), error=error, seen=seen, overrule=False)

    async def _set_state(self, name_or_id: str, state: NodeState, *, error: str | None, seen: bool, overrule: bool) -> None:
        async with self._db.write() as session:
            node = await _find(session, name_or_id)
            if overrule or node.state is not NodeState.DRAINING:
                node.state = state
            node.last_error = error
            if seen:
                node.last_seen_at = utc_now()

    async def update(
        self,
        name_or_id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        token: str | Keep | None = KEEP,
        max_concurrency: int | None = None,
    ) -> NodeRecord:
        """Change what is given; a token of None removes it.

        Raises: NotFound. Conflict: another node has the name or the URL. InvalidRequest: as for `add`.
        """
        async with self._db.write() as session:
            node = await _find(session, name_or_id)
            node.name = name or node.name
            node.url = url or node.url
            if not isinstance(token, Keep):
                node.token_encrypted = self._cipher.encrypt(token)
            if max_concurrency is not None:
                node.max_concurrency = _positive(max_concurrency)
            await _flush(session, node.name, node.url)
        return self._record(node)

    async def list(self) -> NodeRecords:
        """All nodes, by name."""
        async with self._db.read() as session:
            return [self._record(node) for node in await session.scalars(select(Node).order_by(Node.name))]

    def _record(self, node: Node) -> NodeRecord:
        return NodeRecord(
            id=node.id,
            name=node.name,
            url=node.url,
            token=self._cipher.decrypt(node.token_encrypted, node=node.name),
            state=node.state.value,
            max_concurrency=node.max_concurrency,
            last_seen_at=node.last_seen_at,
            last_error=node.last_error,
            created_at=node.created_at,
            approved_at=node.approved_at,
        )


async def _find(session: AsyncSession, name_or_id: str) -> Node:
    query = select(Node).where(or_(Node.id == name_or_id, Node.name == name_or_id))
    found = (await session.scalars(query)).all()
    if not found:
        raise NotFound(f"There is no node {name_or_id!r}.", code="node_not_found")
    # A node may bear another's id as its name; the id wins.
    return next((node for node in found if node.id == name_or_id), found[0])


async def _flush(session: AsyncSession, name: str, url: str) -> None:
    try:
        await session.flush()
    except IntegrityError as error:
        raise Conflict(f"Another node is named {name!r} or has the URL {url!r}.") from error


def _state(state: str) -> NodeState:
    try:
        return NodeState(state)
    except ValueError as error:
        raise InvalidRequest(f"A node is one of {', '.join(NodeState)}; got {state!r}.", param="state") from error


def _positive(max_concurrency: int) -> int:
    if max_concurrency < 1:
        raise InvalidRequest(f"'max_concurrency' is at least 1; got {max_concurrency}.", param="max_concurrency")
    return max_concurrency
