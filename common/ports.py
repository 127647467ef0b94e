"""Ports that are known before the processes that listen on them have started."""

import socket
import sys


def hold_port(number: int = 0, host: str = "127.0.0.1") -> int:
    """Keep a port, a free one for 0, for a process that is to listen on it, now and whenever it starts again; its number.

    Until this process ends, the system gives the port to nobody who takes any: neither to a listener nor to a client, of
    which every connection takes one. It does give it to one who asks for it by number and sets `SO_REUSEADDR`, as servers do.
    Only Linux tells the two apart (socket(7)); elsewhere the port is merely free just now.

    Raises: OSError: somebody listens on it, or it is not ours to have.
    """
    kept = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind((host, number))
        taken = int(kept.getsockname()[1])
    except OSError:
        kept.close()
        raise
    if sys.platform == "linux":
        kept.detach()
    else:
        kept.close()
    return taken
