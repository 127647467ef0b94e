"""A stream of events on its way, in pieces after which it can be gone on with where its node is lost.

Half an event would spoil whatever follows it: clients take that for its rest, and SDKs raise what JSON raises. So a preview,
which nobody keeps, is sent once it is whole. The picture, most of a stream, is sent as it comes: its event can be made again
from the catalog to the byte, so what is missing of it can be sent by whoever has the catalog.
"""

from common.images_api import events

END = b"\n\n"
MOST_HELD_BYTES = 32 * 1024 * 1024
"""Of an event that is not whole yet: a preview of the largest picture, as base64. One that is longer is sent as it comes."""
KNOWN_BY_BYTES = 64
"""Of what was sent last: where the same event made again has them in the same place, it has what came before, too."""


class Frames:
    """What came of a stream and was not sent, and how far the event is sent that is just being sent."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._searched = 0
        """So much of it holds no end of an event."""
        self._passes = False
        """Whether the event that just comes is sent as it comes."""
        self._sent_bytes = 0
        """Of that event."""
        self._sent_last = b""

    def take(self, chunk: bytes) -> bytes:
        """A piece of the stream, as it came. Returns: what may be sent now, which may be nothing."""
        self._held += chunk
        ready = []
        while self._held:
            self._passes = self._passes or events.is_picture(self._held) or len(self._held) > MOST_HELD_BYTES
            end = self._held.find(END, self._searched)
            if end >= 0:
                ready.append(self._cut(end + len(END)))
                self._passes, self._sent_bytes, self._sent_last = False, 0, b""
                continue
            if self._passes and (count := len(self._held) - self._held.endswith(END[:1])):
                ready.append(piece := self._cut(count))
                self._sent_bytes += count
                self._sent_last = (self._sent_last + piece[-KNOWN_BY_BYTES:])[-KNOWN_BY_BYTES:]
            self._searched = max(0, len(self._held) - 1)
            break
        return b"".join(ready)

    def _cut(self, count: int) -> bytes:
        piece = bytes(self._held[:count])
        del self._held[:count]
        self._searched = 0
        return piece

    def left(self) -> bytes:
        """What is left at the stream's end, of an event that never became whole."""
        return self._cut(len(self._held))

    def rest(self, event: bytes) -> bytes | None:
        """The stream has broken off, and `event` is to be its last: what is to be sent of that. None: a part of another was
        sent, so nothing can be."""
        if not self._sent_bytes:
            return event
        return event[self._sent_bytes :] if event[: self._sent_bytes].endswith(self._sent_last) else None
