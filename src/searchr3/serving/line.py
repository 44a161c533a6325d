"""Whether a request would be answered in time: what waits before it, and how fast that went of late."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

_KEPT = 0.95  # share that what was seen before keeps, each time that work is done


class Waiting(Protocol):
    """A request in line."""

    @property
    def waiting(self) -> int:
        """Its work that waits."""


@dataclass
class Line:
    """Requests that take turns, and how fast their work was done while some of it waited.

    Requests come and go in the event loop; the thread that works for them tells what it did.

    Attributes:
        turn: work that a turn may do of one request.
        requests: those in line.
    """

    turn: int
    requests: set[Waiting] = field(default_factory=set)
    _seconds: float = 0.0
    _work: float = 0.0
    _since: float | None = None

    def did(self, work: int, now: float) -> None:
        """So much work was done since work was done last; at first, or after `rest`, the time is noted."""
        if work and self._since is not None:
            self._seconds = _KEPT * self._seconds + now - self._since
            self._work = _KEPT * self._work + work
        if work or self._since is None:
            self._since = now

    def rest(self) -> None:
        """No work waits: the time from now on says nothing about how fast it is done."""
        self._since = None

    def wait(self, work: int) -> float:
        """Seconds that a new request with so much work would wait for others; 0 while nothing is known.

        Requests take turns. So it waits of each other one for no more work than it brings itself, a turn at
        the least: s Σ_j min(w_j, max(w, turn)), with s the seconds that a unit of work took.

        >>> class Request:
        ...     waiting = 1000
        >>> line = Line(turn=10, requests={Request(), Request()})
        >>> line.did(1, now=7.0)
        >>> line.did(100, now=12.0)
        >>> line.wait(1), line.wait(50)
        (1.0, 5.0)
        """
        own = max(work, self.turn)
        before = sum(min(one.waiting, own) for one in self.requests)
        return before * self._seconds / self._work if self._work else 0.0
