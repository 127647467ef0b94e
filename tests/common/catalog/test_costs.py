"""What routers have learned of costs, kept for those that start after them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from common.catalog import Catalog, CostRecord

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def cost(node_id: str, log_s: float = 0.5, *, size: int = 0, at: datetime = NOW) -> CostRecord:
    return CostRecord(
        node_id=node_id,
        model="sdxl",
        work="generation",
        term="step",
        size=size,
        log_s=log_s,
        spread=0.1,
        count=3,
        measured_at=at,
    )


async def test_costs_come_back_as_they_were_kept(catalog: Catalog):
    node = await catalog.nodes.add(name="a", url="http://a", token=None)
    kept = [cost(node.id, size=size) for size in range(-600, 601)]

    await catalog.costs.keep(kept)
    await catalog.costs.keep([])

    assert sorted(await catalog.costs.all(), key=lambda each: each.size) == kept


async def test_of_two_routers_the_one_that_measured_later_is_believed(catalog: Catalog):
    node = await catalog.nodes.add(name="a", url="http://a", token=None)
    early, late = cost(node.id, 1.0), cost(node.id, 2.0, at=NOW + timedelta(seconds=1))

    await catalog.costs.keep([early])
    await catalog.costs.keep([late])
    await catalog.costs.keep([early])

    assert await catalog.costs.all() == [late]


async def test_costs_of_a_node_go_with_it_and_do_not_keep_others_from_being_written(catalog: Catalog):
    gone = await catalog.nodes.add(name="gone", url="http://gone", token=None)
    stays = await catalog.nodes.add(name="stays", url="http://stays", token=None)
    await catalog.costs.keep([cost(gone.id)])

    await catalog.nodes.remove("gone")
    assert await catalog.costs.all() == []
    await catalog.costs.keep([cost(gone.id), cost(stays.id)])

    assert await catalog.costs.all() == [replace(cost(stays.id))]
