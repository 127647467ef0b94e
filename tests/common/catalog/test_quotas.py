"""What routers may give away of a key's limits."""

from collections.abc import Callable
from typing import Any

from common.catalog import Amounts, Catalog, Limits, NewRun


async def test_what_a_router_has_admitted_stays_leased_while_another_routers_run_is_counted_twice(
    catalog: Catalog, new_run: Callable[..., NewRun], result: dict[str, Any]
):
    key, _ = await catalog.keys.create(name="k", scopes=["user"], limits=Limits(images_per_day=10))

    async def lease(holder: str, *, held: int, more: int) -> int:
        want, kept = Amounts(images=held + more), Amounts(images=held)
        return (await catalog.quotas.exchange(key.id, holder, key.limits, want, held=kept, lease_s=30)).granted.images

    assert (await lease("one", held=0, more=6), await lease("two", held=0, more=4)) == (6, 4)
    run = new_run(key_id=key.id)
    await catalog.runs.open(run)
    # Of router one, which holds it until its answer is sent.
    await catalog.runs.finish(run.id, await catalog.runs.begin_attempt(run.id, node="a"), **result)

    assert len(result["images"]) == 1
    assert await lease("two", held=4, more=1) == 4
    assert await lease("one", held=6, more=1) == 6
