"""Places for routers' runs: never more than a router says there are, and each given back."""

import pytest

from common.errors import NodeBusy
from common.node_api import DeviceStatus, JobPhase, JobStatus, NodePhase, NodeStatus
from node.places import Places


class Here:
    """A node with runs: id -> whether each has a place still."""

    def __init__(self, **held: bool) -> None:
        self.held = held
        self.open = True
        self.changes = 0
        self.places = Places(lambda: self.held, self.status, is_open=lambda: self.open)
        self.places.on_change = self.note

    def note(self) -> None:
        self.changes += 1

    def status(self) -> NodeStatus:
        jobs = [JobStatus(run_id=run_id, model="m", phase=JobPhase.QUEUED) for run_id, placed in self.held.items() if placed]
        device = DeviceStatus(kind="cpu", name="it", memory_total_bytes=1, memory_free_bytes=1)
        phase = NodePhase.READY if self.open else NodePhase.DRAINING
        expected = self.places.expected
        return NodeStatus(name="a", version="0", phase=phase, device=device, models=[], jobs=jobs, expected=expected)


def refused(here: Here, most: int) -> dict[str, object]:
    with pytest.raises(NodeBusy) as busy, here.places.taken("another", most):
        pass
    holding: dict[str, object] = busy.value.envelope()["holding"]
    return holding


def test_a_run_has_its_place_from_before_it_is_read():
    here = Here(a=True)

    with here.places.taken("b", 2):
        assert here.places.expected == 1
        assert refused(here, 2)["expected"] == 1
        here.held["b"] = True
        assert here.places.expected == 0
        assert refused(here, 2)["expected"] == 0

    assert here.changes == 2


def test_a_run_that_has_left_the_device_has_left_its_place():
    here = Here(a=True, b=False)

    with here.places.taken("c", 2):
        pass


def test_the_place_of_a_request_that_was_not_good_is_free_again():
    here = Here()

    with pytest.raises(ValueError, match="not good"), here.places.taken("a", 1):
        raise ValueError("not good")

    with here.places.taken("b", 1):
        pass


def test_who_is_refused_hears_what_the_node_does_instead():
    here = Here(a=True)

    told = refused(here, 1)

    assert (told["phase"], [job["run_id"] for job in told["jobs"]]) == ("ready", ["a"])  # type: ignore[attr-defined]


def test_a_node_that_takes_nothing_new_has_no_places():
    here = Here()
    here.open = False

    assert refused(here, 10)["phase"] == "draining"
