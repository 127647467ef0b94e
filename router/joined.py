"""One answer out of the answers to a request's parts: heads are joined, pictures pass as the bytes that the nodes sent."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from common.catalog import RunRecord
from router.body import Body
from router.wire import Broken

BEFORE_PICTURES = b',"data":['
AFTER_PICTURES = b"]}"
OF_THE_LAST = ("queued", "load", "total")
"""Timings that pass in all parts at once; the others are a device's work, and are added up."""


@dataclass(frozen=True, slots=True)
class PartAnswer:
    """The answer to one part. length: of its body, in bytes."""

    head: dict[str, Any]
    body: Body
    length: int

    @property
    def opening(self) -> bytes:
        """What comes before its pictures, as `answer_bytes` writes it."""
        return head_bytes(self.head) + BEFORE_PICTURES


def head_bytes(head: dict[str, Any]) -> bytes:
    """The beginning of an answer, without the pictures. Keys are sorted: see `answer_bytes`."""
    return orjson.dumps(head, option=orjson.OPT_SORT_KEYS)[:-1]


def head_of(run_id: str, parts: Sequence[RunRecord]) -> dict[str, Any]:
    """The head of the whole answer: as one node would have written it, but for what the parts differ in."""
    heads = [part.answer or {} for part in parts]
    head = heads[0] | {"id": run_id, "created": max(int(each.get("created", 0)) for each in heads)}
    if "usage" in head:
        head["usage"] = _usage([each["usage"] for each in heads])
    if "timings" in head:
        head["timings"] = timings_of(parts)
    return head


def timings_of(parts: Sequence[RunRecord]) -> dict[str, float]:
    """Seconds by phase: see `OF_THE_LAST`."""
    timings = [part.timings or {} for part in parts]
    last = max(timings, key=lambda each: each.get("total", 0.0))
    phases = dict.fromkeys(phase for each in timings for phase in each)
    summed = {phase: round(sum(each.get(phase, 0.0) for each in timings), 4) for phase in phases}
    return summed | {phase: last[phase] for phase in OF_THE_LAST if phase in last}


def effective_of(parts: Sequence[RunRecord]) -> dict[str, Any]:
    """What really ran. Where it ran is for the parts to say."""
    return {name: value for name, value in (parts[0].effective or {}).items() if name != "node"}


def _usage(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What goes in was the same for all parts and counts once; what comes out is added up."""
    first, out = parts[0], sum(part["output_tokens"] for part in parts)
    details = {name: sum(part["output_tokens_details"][name] for part in parts) for name in first["output_tokens_details"]}
    return first | {"output_tokens": out, "output_tokens_details": details, "total_tokens": first["input_tokens"] + out}


def length_of(head: dict[str, Any], parts: Sequence[PartAnswer]) -> int:
    """Bytes of the whole answer."""
    pictures = sum(part.length - len(part.opening) - len(AFTER_PICTURES) for part in parts)
    return len(head_bytes(head) + BEFORE_PICTURES) + pictures + len(parts) - 1 + len(AFTER_PICTURES)


def body_of(head: dict[str, Any], parts: Sequence[PartAnswer]) -> Body:
    """The whole answer, one part after another; the others wait at their nodes.

    It raises: Broken: a part is not what it was to be.
    """

    async def let_go(_: bool) -> None:
        for part in parts:
            await part.body.aclose()

    return Body(_chunks(head, parts), let_go)


async def _chunks(head: dict[str, Any], parts: Sequence[PartAnswer]) -> AsyncGenerator[bytes]:
    yield head_bytes(head) + BEFORE_PICTURES
    for index, part in enumerate(parts):
        if index:
            yield b","
        async with aclosing(_pictures_in(part)) as pictures:
            async for chunk in pictures:
                yield chunk
    yield AFTER_PICTURES


async def _pictures_in(part: PartAnswer) -> AsyncGenerator[bytes]:
    """What stands between the brackets of `data`."""
    opening, at = part.opening, 0
    ends = part.length - len(AFTER_PICTURES)
    async with aclosing(part.body) as body:
        async for chunk in body:
            # Of the opening, as much as this chunk should hold.
            if not chunk.startswith(opening[at : at + len(chunk)]):
                raise Broken("the answer to a part does not begin as it was recorded")
            wanted = chunk[max(0, len(opening) - at) : max(0, ends - at)]
            at += len(chunk)
            if wanted:
                yield wanted
    if at != part.length:
        raise Broken("the answer to a part is not as long as it was to be")
