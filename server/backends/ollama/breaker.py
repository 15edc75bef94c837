"""When to ask a daemon that does not answer. Pure; the clock is the caller's."""

from __future__ import annotations

PROBE_INTERVAL_SECONDS = 1.0


class CircuitBreaker:
    """Remembers that the daemon is down, so that nobody waits for it, and how often to look whether it is back."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._asked_at = float("-inf")

    @property
    def reason(self) -> str | None:
        """Why the daemon is taken to be down; ``None`` while it is not."""
        return self._reason

    def fail(self, reason: str, now: float) -> None:
        """Take the daemon to be down."""
        self._reason = reason
        self._asked_at = now

    def succeed(self) -> None:
        """Take the daemon to be there."""
        self._reason = None

    def may_probe(self, now: float) -> bool:
        """Whether it is time to look again."""
        return now - self._asked_at >= PROBE_INTERVAL_SECONDS
