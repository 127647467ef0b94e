"""HTTP/1.1 to nodes, for bodies that pass through untouched.

A library's client costs several times what the bytes cost (`aquatint bench router` compares with nginx), so this one does
only what a router needs: one request and one answer at a time on kept-alive connections, heads parsed by httptools
(llhttp, the parser of Node.js), bodies of known length not parsed at all and, where they are long, moved by the kernel
(`pouring.py`), back-pressure, and bounds on everything that a node decides.

It is strict, because a node is not trusted: an answer whose framing is doubtful is lost together with its connection.
Never followed: redirects. Not understood: answers that end with their connection, which nobody can tell from cut ones;
content codings; upgrades; trailers' contents.
"""

from router.wire.answer import Answer, Broken, Patience, Refused
from router.wire.pool import Pool
from router.wire.pouring import Sink, SinkGone

__all__ = ["Answer", "Broken", "Patience", "Pool", "Refused", "Sink", "SinkGone"]
