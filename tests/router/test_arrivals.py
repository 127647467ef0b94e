"""Requests of one key begin in the order of their coming, whatever each of them is kept by before the line."""

import asyncio
import time

from common.images_api import ImageRequest, Task
from router.accepting import Sender
from router.arrivals import Arrival, Arrivals
from router.relay import Accepted
from router.services import Services
from tests.fakes.node import MODEL
from tests.router.conftest import ADMIN_KEY, MakeHouse, until


def come(arrivals: Arrivals, secret: str = "key") -> Arrival:
    arrival = arrivals.begun(secret)
    arrival.came()
    return arrival


async def lets_by(arrival: Arrival) -> bool:
    """Whether it may go into line at once."""
    going = asyncio.ensure_future(arrival.first())
    await asyncio.sleep(0)
    return going.done() or not going.cancel()


async def test_each_waits_until_none_that_came_earlier_is_on_its_way():
    arrivals, order = Arrivals(), list[int]()
    coming = [come(arrivals) for _ in range(5)]

    async def go(number: int) -> None:
        await coming[number].first()
        order.append(number)
        coming[number].over()

    await asyncio.gather(*(go(number) for number in reversed(range(5))))

    assert order == [0, 1, 2, 3, 4]


async def test_nobody_waits_for_another_key():
    arrivals = Arrivals()
    come(arrivals, "first")

    assert await lets_by(come(arrivals, "second"))


async def test_nobody_waits_for_one_that_is_over_even_if_its_last_byte_comes_later():
    arrivals = Arrivals()
    refused = arrivals.begun("key")
    refused.over()
    refused.came()

    assert await lets_by(come(arrivals))


async def test_one_that_leaves_while_it_waits_lets_those_behind_it_by():
    arrivals = Arrivals()
    first, leaving, last = (come(arrivals) for _ in range(3))
    waiting = asyncio.ensure_future(leaving.first())
    going = asyncio.ensure_future(last.first())
    await asyncio.sleep(0)

    waiting.cancel()
    leaving.over()
    first.over()

    await asyncio.wait_for(going, 5)


async def test_a_request_comes_with_its_last_byte_and_not_with_its_head():
    arrivals = Arrivals()
    slow, quick = arrivals.begun("key"), come(arrivals)
    assert await lets_by(quick)

    slow.came()

    assert slow.at_s > quick.at_s
    assert slow.run_id > quick.run_id
    assert not await lets_by(slow)


async def test_one_that_waits_for_what_it_names_elsewhere_comes_behind_those_that_come_meanwhile():
    arrivals = Arrivals()
    naming, later = come(arrivals), come(arrivals)
    naming.comes_later()
    assert await lets_by(later)
    naming.came()

    assert not await lets_by(naming)
    later.over()
    assert await lets_by(naming)


def test_ids_are_in_the_order_of_coming_within_a_millisecond_too():
    arrivals = Arrivals()

    ids = [come(arrivals).run_id for _ in range(1000)]

    assert ids == sorted(set(ids))


async def accepted(services: Services, prompt: str, arrival: Arrival) -> Accepted:
    sender = Sender(
        run_id=arrival.run_id,
        request_id=prompt,
        requested_model=MODEL,
        key_id=None,
        public_url="http://router",
        arrived_s=arrival.at_s,
        arrival=arrival,
    )
    asked = ImageRequest(task=Task.GENERATION, prompt=prompt, model=MODEL)
    return await services.acceptance.accept(asked, sender)


async def test_a_free_node_goes_to_the_one_that_came_first_though_it_is_kept_elsewhere_for_longer(make_house: MakeHouse):
    house = await make_house("a")
    arrivals = Arrivals()
    first, second = come(arrivals), come(arrivals)

    quick = asyncio.ensure_future(house.services.dispatcher.run(await accepted(house.services, "second", second)))
    # Longer than it needs to get to the node.
    assert (await house.generate("of another key")).status_code == 200
    kept = asyncio.ensure_future(house.services.dispatcher.run(await accepted(house.services, "first", first)))
    for reply in await asyncio.gather(quick, kept):
        await reply.body.aclose()

    assert [asked.prompt for asked in house.nodes["a"].asked] == ["of another key", "first", "second"]


async def test_parts_of_one_request_do_not_wait_for_each_other(make_house: MakeHouse):
    house = await make_house("a")
    arrivals = Arrivals()
    first, whole = come(arrivals), come(arrivals)
    parts = [await accepted(house.services, name, whole) for name in ("part 0", "part 1")]
    parts[1] = parts[1]._replace(run_id=come(Arrivals()).run_id)
    making = asyncio.gather(*map(house.services.dispatcher.run, parts))
    await asyncio.sleep(0)

    first.over()

    for reply in await asyncio.wait_for(making, 10):
        await reply.body.aclose()


async def raw(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


def head(length: int) -> bytes:
    lines = ["POST /v1/images/generations HTTP/1.1", "host: x", f"authorization: Bearer {ADMIN_KEY}"]
    return "\r\n".join([*lines, "content-type: application/json", f"content-length: {length}", "", ""]).encode()


async def test_those_behind_a_body_that_does_not_come_are_answered_meanwhile(make_house: MakeHouse):
    house = await make_house("a")
    reader, slow = await raw(house.url)
    body = b'{"prompt": "slow", "model": "%s"}' % MODEL.encode()
    slow.write(head(len(body)) + body[:5])
    await slow.drain()

    async with asyncio.timeout(10):
        assert (await house.generate("quick")).status_code == 200
        slow.write(body[5:])
        assert b" 200 " in await reader.readline()

    slow.close()
    assert [asked.prompt for asked in house.nodes["a"].asked] == ["quick", "slow"]


async def test_those_behind_one_that_is_refused_or_leaves_are_answered(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 60
    _, leaving = await raw(house.url)
    body = b'{"prompt": "leaves", "model": "%s"}' % MODEL.encode()
    leaving.write(head(len(body)) + body)
    await until(lambda: bool(house.nodes["a"].started))
    leaving.close()
    house.nodes["a"].faults.seconds = 0.05

    async with asyncio.timeout(10):
        assert (await house.generate(size="nonsense")).status_code == 400
        assert (await house.generate(dry_run=True)).status_code == 200
        assert (await house.generate()).status_code == 200


async def test_an_async_run_keeps_the_place_of_when_it_was_accepted(make_house: MakeHouse):
    house = await make_house("a", node_depth=0, async_at_once=8)
    house.nodes["a"].faults.seconds = 60
    began_s = time.monotonic()
    for prompt in ("holds the node", "waits"):
        reply = await house.client.post(
            "/v1/images/generations", json={"prompt": prompt, "model": MODEL}, headers={"prefer": "respond-async"}
        )
        assert reply.status_code == 202
    answered_s = time.monotonic()
    await until(lambda: len(house.services.queue) == 1)

    [waiting] = house.services.queue.line
    assert began_s - 0.001 <= waiting.arrived_s <= answered_s
