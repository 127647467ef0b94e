"""Child processes of `aquatint up`: started, watched, started again when they die, ended in good order."""

import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from common.lifeline import FD_VARIABLE

RESTART_BACKOFF_S = (0.5, 1, 2, 5, 10, 30)
STEADY_AFTER_S = 60.0
"""A process that lived this long starts its backoff from the beginning."""
LOG_TAIL_BYTES = 4000


class ChildFailed(Exception):
    """A child ended before it was ever ready; the text holds the end of its log."""


class Child:
    """One child process, its log file, and the task that keeps it alive."""

    def __init__(self, name: str, arguments: list[str], *, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._arguments = arguments
        self._environment = dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.on_restart: Callable[[str, int], None] = lambda name, code: None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start it; it is kept alive from `keep_alive` on."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = os.pipe()
        try:
            with self.log.open("ab") as out:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *self._arguments,
                    env={**os.environ, **self._environment, FD_VARIABLE: str(ours)},
                    pass_fds=(ours,),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    # Ctrl-C in the terminal reaches this process alone, which ends its children in order.
                    start_new_session=True,
                )
        finally:
            os.close(ours)
        # `theirs` stays open as long as this process lives: that is the lifeline.
        self._lifeline = theirs

    def check(self) -> None:
        """Raises: ChildFailed: it has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise ChildFailed(f"The {self.name} ended with code {self._process.returncode}. Its log says:\n{self.tail()}")

    def tail(self) -> str:
        """The end of its log."""
        content = self.log.read_bytes() if self.log.exists() else b""
        return content[-LOG_TAIL_BYTES:].decode(errors="replace")

    def keep_alive(self) -> None:
        """From now on, start it again whenever it ends."""
        self._keeper = asyncio.create_task(self._keep_alive(), name=f"keep {self.name} alive")

    async def _keep_alive(self) -> None:
        restarts = 0
        while self._process is not None:
            began_s = time.monotonic()
            code = await self._process.wait()
            restarts = 0 if time.monotonic() - began_s > STEADY_AFTER_S else restarts + 1
            os.close(self._lifeline)
            self.on_restart(self.name, code)
            await asyncio.sleep(RESTART_BACKOFF_S[min(restarts, len(RESTART_BACKOFF_S) - 1)])
            await self.start()

    async def stop(self, *, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s` seconds."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class HomeInUse(Exception):
    """Another `aquatint up` runs from the same home."""


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the home for this process alone; the lock goes with the process, however it ends.

    Raises: HomeInUse.
    """
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HomeInUse(f"Aquatint already runs from {home}. Stop it, or choose another folder with --home.") from None
        yield
