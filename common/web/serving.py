"""uvicorn, set up alike for router and node."""

import signal

import uvicorn
from fastapi import FastAPI


def serve(app: FastAPI, *, host: str, port: int, drain_s: int = 30) -> None:
    """Serve until SIGINT or SIGTERM, then let requests in flight end for at most `drain_s` seconds.

    Without that bound uvicorn waits for open streams for ever.
    """
    # uvicorn raises the signal again once it has ended in good order; a process that did what it was told exits with 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_s,
        timeout_keep_alive=65,
        backlog=4096,
        server_header=False,
    )
