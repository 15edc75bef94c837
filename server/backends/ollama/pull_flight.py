"""A model on its way to the daemon."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from server.backends.ollama.daemon import Daemon
from server.backends.ollama.pull_lines import PullLines
from server.core.errors import BackendError

_PARTING_SECONDS = 2.0


class PullFlight:
    """One pull of the daemon's, however many wait for it."""

    def __init__(self, daemon: Daemon, name: str, silence_timeout: float) -> None:
        """Have the daemon pull; it may say nothing for ``silence_timeout`` seconds."""
        self.num_listeners = 0
        self.lines = PullLines()
        self._task = asyncio.create_task(self._run(daemon, name, silence_timeout))
        self._task.add_done_callback(_retrieve)

    async def wait(self, seconds: float) -> bool:
        """Wait for the end, but not for longer than that; say whether it has come."""
        await asyncio.wait([self._task], timeout=seconds)
        return self._task.done()

    def raise_failure(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._task.cancelled():
            raise BackendError("The pull was given up, because this server is shutting down.")
        self._task.result()

    async def end(self) -> None:
        """Stop, if it is not over."""
        self._task.cancel()
        await asyncio.wait([self._task], timeout=_PARTING_SECONDS)

    async def _run(self, daemon: Daemon, name: str, silence_timeout: float) -> None:
        async with aclosing(daemon.pull(name, silence_timeout)) as lines:
            async for line in lines:
                self.lines.take(line)
        if not self.lines.is_complete:
            raise BackendError(f"The Ollama daemon stopped pulling {name} without saying why; pull again to go on.")


def _retrieve(task: asyncio.Task[None]) -> None:
    """Look at the outcome: nobody may be left who waits for it."""
    if not task.cancelled():
        task.exception()
