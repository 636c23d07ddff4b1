"""For how long a name was unknown to the engine while one revision took the place of another."""

from __future__ import annotations

from collections.abc import Container

from sidecar.core.actions import Action, Load, Unload
from sidecar.core.outcome import Done, Outcome, is_unknown


class ReplacementGaps:
    """Follows the ended actions; the gap is from an unload's start to the end of the next load.

    An engine that replaces in place has no such unload, and no gap.
    """

    def __init__(self) -> None:
        self._gone_since: dict[str, float] = {}

    def ended(self, action: Action, outcome: Outcome, *, began: float, now: float) -> float | None:
        """Take note of one action; return the gap, in seconds, that it closed.

        A load that failed closes none: the name stays unknown until another one succeeds.
        """
        match action:
            case Unload(name=name, replacing=True):
                if isinstance(outcome, Done) or is_unknown(action, outcome):
                    # After one of unknown outcome, another unload means that it was still there.
                    self._gone_since[name] = began
            case Load(name=name) if isinstance(outcome, Done):
                since = self._gone_since.pop(name, None)
                return None if since is None else now - since
            case _:
                pass
        return None

    def keep(self, names: Container[str]) -> None:
        """Forget the names that no document asks for any more: nobody waits for them."""
        self._gone_since = {
            name: since for name, since in self._gone_since.items() if name in names
        }

    def restarted(self) -> None:
        """The engine was restarted: what is unknown now is unknown for that reason."""
        self._gone_since.clear()
