"""How nodes share one request, as a table of fleets."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from router.placement import Ask, Candidate, Offer, place
from router.plan import Plan, plan

MODEL = "sdxl"
FOUR = Ask(MODEL, "generation", 40.0, pictures=4)
"""10 s a picture at a pace of 1."""


def node(
    name: str, *, pace: float = 1.0, warm: bool = True, load_s: float = 15.0, build: str = "x", **more: object
) -> Candidate:
    offer = Offer(tasks=frozenset({"generation"}), pace=pace, load_s=load_s, build=(build,))
    resident = (MODEL,) if warm else ()
    return replace(Candidate(name, name, {MODEL: offer}, places=2, resident=resident), **more)  # type: ignore[arg-type]


def planned(ask: Ask, *nodes: Candidate) -> Plan | None:
    return plan(ask, nodes, now_s=0.0, want=lambda model: 0.0)


def shares(found: Plan | None) -> list[tuple[str, int]]:
    return [] if found is None else [(part.node, part.pictures) for part in found.parts]


def test_equal_nodes_share_equally():
    found = planned(FOUR, node("a"), node("b"))

    assert shares(found) == [("a", 2), ("b", 2)]
    assert found is not None
    assert (found.finish_s, found.whole_s) == (20.0, 40.0)
    assert [(ask.units, ask.pictures) for ask in found.asks()] == [(20.0, 2), (20.0, 2)]


def test_a_quicker_node_makes_more():
    assert shares(planned(FOUR, node("slow", pace=3.0), node("quick"))) == [("quick", 3), ("slow", 1)]


def test_no_more_nodes_than_it_takes():
    assert shares(planned(FOUR, node("a"), node("b"), node("c"))) == [("a", 2), ("b", 2)]
    assert shares(planned(FOUR, *map(node, "abcde"))) == [("a", 1), ("b", 1), ("c", 1), ("d", 1)]


def test_a_cold_node_takes_part_only_where_its_load_pays():
    assert planned(FOUR, node("warm"), node("cold", warm=False, load_s=35.0)) is None
    assert shares(planned(FOUR, node("warm"), node("cold", warm=False, load_s=5.0))) == [("warm", 2), ("cold", 2)]
    # 20 s by both warm nodes; a third that loads for 9 s would make it 20 as well.
    assert shares(planned(FOUR, node("a"), node("b"), node("cold", warm=False, load_s=9.0))) == [("a", 2), ("b", 2)]


def test_what_an_eviction_costs_others_counts():
    cold = node("cold", warm=False, load_s=5.0, max_resident=1, resident=("other",))
    offers = {**cold.offers, "other": replace(cold.offers[MODEL], load_s=60.0)}
    cold = replace(cold, offers=offers)

    assert shares(planned(FOUR, node("warm"), cold)) == [("warm", 2), ("cold", 2)]
    assert plan(FOUR, [node("warm"), cold], now_s=0.0, want=lambda model: 1.0) is None


def test_only_idle_nodes_take_part_that_make_the_same_pictures():
    assert planned(FOUR, node("a"), node("b", held=1, free_at_s=1.0)) is None
    assert planned(FOUR, node("a"), node("b", build="another")) is None
    assert planned(FOUR, node("a"), node("b", away="draining")) is None
    found = planned(FOUR, node("a"), node("b"))
    assert found is not None
    assert place(found.ask, [node("c", build="another")], now_s=0.0, want=lambda model: 0.0).node_id is None


def test_what_is_hardly_won_is_not_split():
    assert planned(FOUR._replace(units=0.4), node("a"), node("b")) is None
    assert planned(FOUR._replace(pictures=1), node("a"), node("b")) is None
    assert planned(FOUR, node("a"), node("b", pace=39.0)) is None


paces = st.floats(0.1, 10.0)


@given(st.lists(st.tuples(paces, st.booleans(), st.floats(0.0, 30.0)), min_size=1, max_size=6), st.integers(2, 10))
def test_every_picture_is_made_once_and_never_later_than_by_one_node(made: list[tuple[float, bool, float]], pictures: int):
    nodes = [node(f"n{i}", pace=pace, warm=warm, load_s=load_s) for i, (pace, warm, load_s) in enumerate(made)]
    ask = Ask(MODEL, "generation", 3.0 * pictures, pictures=pictures)

    found = planned(ask, *nodes)

    if found is None:
        return
    assert sum(part.pictures for part in found.parts) == pictures
    assert all(part.pictures > 0 for part in found.parts)
    assert len({part.node for part in found.parts}) == len(found.parts) > 1
    assert found.finish_s <= found.whole_s
    by_name = {each.name: each for each in nodes}
    for part, each in zip(found.parts, found.asks(), strict=True):
        taker = by_name[part.node]
        load_s = 0.0 if MODEL in taker.resident else taker.offers[MODEL].load_s
        assert abs(part.finish_s - load_s - taker.offers[MODEL].own_s(each)) < 1e-6
