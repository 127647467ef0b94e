"""What both HTTP processes do alike: request ids, the error envelope, bounded bodies, noticing a client that leaves.

Errors have one writer: `answer_error`. It serves three callers, because an error can surface in three places: raised by
a handler (exception handlers), raised by Starlette's own routing (404, 405), or by code no handler guards (the
outermost middleware). All three give the same envelope.

Whoever connects, without a key as well, can take neither all memory nor all files nor all time: heads, bodies and silence are
bounded (`connection.py`), and those who ask for nothing make room for others (`connections.py`).

A server that is told to stop loses no request: it takes whoever has connected, answers what still comes on connections that
are open, with word that this was the last, and hangs up on nobody whose request is on its way. So routers and nodes can be
replaced one after another under load; a client needs to know no more than HTTP's `connection: close`.
"""

from common.web.bodies import read_body
from common.web.clients import until_client_leaves
from common.web.context import RequestContext
from common.web.errors import answer_error, install_error_handlers
from common.web.serving import serve

__all__ = ["RequestContext", "answer_error", "install_error_handlers", "read_body", "serve", "until_client_leaves"]
