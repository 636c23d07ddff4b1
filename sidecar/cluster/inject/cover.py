"""Whether one object has all of another, and perhaps more."""

from __future__ import annotations

from collections.abc import Mapping


def covers(held: object, wanted: object) -> bool:
    """Tell whether ``held`` has everything of ``wanted``: keys of objects, and items of lists of
    objects in any order. Lists of anything else must be equal."""
    if isinstance(wanted, Mapping):
        return isinstance(held, Mapping) and all(
            key in held and covers(held[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list) and wanted and all(isinstance(one, Mapping) for one in wanted):
        return isinstance(held, list) and all(
            any(covers(other, one) for other in held) for one in wanted
        )
    return bool(held == wanted)
