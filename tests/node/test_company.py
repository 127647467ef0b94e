"""The orders that wait in a worker, taken by one thread and filled by others."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from node.worker.company import Orders
from node.worker.frames import Frame

BOUND_S = 60.0


def of(share: int | None) -> Frame:
    return Frame({"kind": "together", "share": share, "members": []})


@pytest.mark.parametrize("what", ["an order of the share", "the end of another thing"])
def test_who_waits_for_company_or_another_thing_goes_on_with_either(what: str):
    orders, other, began = Orders(), Future[None](), threading.Event()

    def wait() -> Frame | None:
        began.set()
        orders.wait(1, [Future(), other])
        return orders.next_of(1)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        assert began.wait(BOUND_S)
        if what == "an order of the share":
            orders.put(of(1))
            assert waiting.result(BOUND_S) == of(1)
        else:
            other.set_result(None)
            assert waiting.result(BOUND_S) is None


def test_an_order_that_is_no_company_wakes_nobody():
    orders, other = Orders(), Future[None]()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(orders.wait, 1, [other])
        for share in (None, 2, 1):
            orders.put(of(share))
        assert not waiting.done()
        other.set_result(None)
        waiting.result(BOUND_S)

    assert [orders.get().header["share"] for _ in range(3)] == [None, 2, 1]
