"""Request bodies, bounded while they arrive."""

from starlette.requests import Request

from common.errors import PayloadTooLarge, RunCancelled

LEFT_EARLY = "The client left before its request was complete."
DRAIN_BYTES = 64 * 1024 * 1024
"""How much of a refused body is read and dropped. A client that is still sending when the connection closes sees a
reset instead of the 413, and an SDK then retries the same upload twice."""


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """The whole body.

    Raises: PayloadTooLarge: more than `max_bytes`, declared or really sent; RunCancelled: the client left while sending.
    """
    receive = request.receive
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RunCancelled(LEFT_EARLY)
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size <= max_bytes:
            chunks.append(chunk)
        elif size > DRAIN_BYTES:
            break
    if size > max_bytes:
        raise too_large(max_bytes)
    return b"".join(chunks)


def too_large(max_bytes: int) -> PayloadTooLarge:
    """What a body of more than `max_bytes` is answered."""
    return PayloadTooLarge(f"The body of the request is larger than {max_bytes:,} bytes.")
