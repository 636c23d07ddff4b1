"""Which tasks are past their own deadline: the whole of liveness."""

from __future__ import annotations

from collections.abc import Callable


class Deadlines:
    """Each task says by when it will be heard of again; who is not, hangs."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._clock = clock
        self._due: dict[str, float] = {}

    def beat(self, name: str, deadline_seconds: float) -> None:
        """Task ``name`` makes progress and will beat again within ``deadline_seconds``."""
        self._due[name] = self._clock() + deadline_seconds

    def done(self, name: str) -> None:
        """Task ``name`` ended as it should; nothing is expected of it any more."""
        self._due.pop(name, None)

    def overdue(self) -> tuple[str, ...]:
        """Name the tasks that are past their deadline, in order of name."""
        now = self._clock()
        return tuple(sorted(name for name, due in self._due.items() if due < now))
