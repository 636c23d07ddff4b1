"""Which lines of an engine's page stand for a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adapters.base import Series
from sidecar.core.exposition import Line, find_lines


def select(page: bytes, series: Series) -> list[Line]:
    """Return the lines that ``series`` selects; negative values are none."""
    lines = [line for line in find_lines(page, series.name) if line.value >= 0]
    if series.labels:
        lines = [line for line in lines if _matches(line, series.labels)]
    return _once(lines, series.shared_by) if series.shared_by else lines


def by_model(
    page: bytes, alternatives: Iterable[Series], model_label: str
) -> dict[str, list[Line]]:
    """Return the lines of each model, from the first alternative that has any of it.

    Without a ``model_label`` the page is that of one model, whose name is empty.
    """
    found: dict[str, list[Line]] = {}
    for series in alternatives:
        if found and not model_label:
            break
        here: dict[str, list[Line]] = {}
        for line in select(page, series):
            here.setdefault(model_of(line, model_label), []).append(line)
        found = here | found
    return found


def model_of(line: Line, model_label: str) -> str:
    """Return the model that a line is about; it has no name where there is no label for it."""
    return line.labels().get(model_label, "") if model_label else ""


def _matches(line: Line, wanted: Mapping[str, str]) -> bool:
    labels = line.labels()
    # As Prometheus has it, a label that is not there is an empty one.
    return all(labels.get(name, "") == value for name, value in wanted.items())


def _once(lines: list[Line], shared_by: tuple[str, ...]) -> list[Line]:
    greatest: dict[frozenset[tuple[str, str]], Line] = {}
    for line in lines:
        key = frozenset(one for one in line.labels().items() if one[0] not in shared_by)
        if key not in greatest or greatest[key].value < line.value:
            greatest[key] = line
    return list(greatest.values())
