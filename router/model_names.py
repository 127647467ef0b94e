"""Names clients use -> models nodes have: aliases, the default, and the difference between "unknown" and "not now"."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from common.catalog import Catalog
from common.catalog.shared_reads import SharedReads
from common.errors import NoCapacity, NotFound, UnknownModel
from common.node_api import ModelStatus
from router.registry import Registry

ALIASES_FRESH_S = 2.0
DEMO_MODEL = "aquatint-demo"
OPENAI_NAMES = (
    "dall-e-2",
    "dall-e-3",
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "chatgpt-image-latest",
)
"""Names that clients have built in. They lead to the demonstration model where a node serves it, so that such clients
work at once; an operator's alias of the same name wins."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of the list of models. `alias_of` is None for a model itself."""

    id: str
    model: ModelStatus
    alias_of: str | None = None


class ModelNames:
    """What the nodes serve, under all its names."""

    def __init__(self, registry: Registry, catalog: Catalog, *, default: str | None) -> None:
        self._registry = registry
        self._catalog = catalog
        self._default = default
        self._aliases: dict[str, str] = {}
        self._reads = SharedReads(self._read)
        self._fresh_until_s = 0.0
        self._changes = 0
        """What was read before a change is not kept after it."""

    async def resolve(self, name: str | None) -> tuple[str, ModelStatus | None]:
        """The model a client means, and what nodes say of it (None when it is only known from the catalog).

        Raises: UnknownModel: no node ever had it. NoCapacity: one that this router has not heard of yet may have it.
        """
        name = self._default if name is None else name
        if not self._registry.has_looked and (name is None or await self._target(name) not in self._heard_of()):
            # Or what came first would go to the model of the node that happened to answer first, or be told there is none.
            await self._registry.first_looks()
        models = self._heard_of()
        if name is None:
            name = next(iter(sorted(self._registry.models(online=True)) or sorted(models)), None)
            if name is None:
                self._refuse_unheard("default")
                raise UnknownModel("default")
        target = await self._target(name)
        if target in models:
            return target, models[target]
        try:
            await self._catalog.models.get(target)
        except NotFound:
            if target in OPENAI_NAMES:
                self._refuse_unheard(name)
            raise UnknownModel(name) from None
        return target, None

    async def _target(self, name: str) -> str:
        """What a name leads to: itself, if it is nobody's alias."""
        built_in = DEMO_MODEL if name in OPENAI_NAMES and DEMO_MODEL in self._heard_of() else name
        return (await self._operators()).get(name, built_in)

    def _heard_of(self) -> Mapping[str, ModelStatus]:
        return self._registry.models(online=False)

    def _refuse_unheard(self, name: str) -> None:
        """A node that has not answered yet may have what others have not. Raises: NoCapacity."""
        unheard = {node.name: str(node.health) for node in self._registry.nodes() if node.status is None}
        if unheard:
            raise NoCapacity(name, unheard, retry_after_s=1)

    async def listed(self) -> list[Listed]:
        """Models of online nodes and the aliases that lead to them, by name."""
        await self._registry.first_looks()
        models = self._registry.listed()
        found = [Listed(name, model) for name, model in models.items()]
        found += [Listed(a, models[t], t) for a, t in (await self.aliases()).items() if t in models and a not in models]
        return sorted(found, key=lambda each: each.id)

    async def aliases(self) -> dict[str, str]:
        """alias -> model, the built-in ones included."""
        operators = await self._operators()
        built_in = dict.fromkeys(OPENAI_NAMES, DEMO_MODEL) if DEMO_MODEL in self._heard_of() else {}
        return built_in | operators

    async def _operators(self) -> dict[str, str]:
        """alias -> model as operators set them, at most two seconds old."""
        if time.monotonic() >= self._fresh_until_s:
            await self._reads.get(None)
        return self._aliases

    async def _read(self, _: None) -> None:
        changes = self._changes
        aliases = await self._catalog.models.aliases()
        if changes == self._changes:
            self._aliases, self._fresh_until_s = aliases, time.monotonic() + ALIASES_FRESH_S

    def forget(self) -> None:
        """Read the aliases anew: one was just changed here."""
        self._changes += 1
        self._fresh_until_s = 0.0
        self._reads.forget()
