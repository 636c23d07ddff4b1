"""The live table at a terminal, until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sidecar.commands.client import AgentClient, AgentUnreachable
from sidecar.commands.output import printable
from sidecar.commands.table import HEADINGS, head_lines, rows

STATE_COLUMN = HEADINGS.index("STATE")
STYLES = {
    "resident": "green",
    "failed": "red",
    "asleep": "dim",
    "absent": "dim",
}
"""Every other state is on its way, and yellow."""


def show_live(client: AgentClient, status: Mapping[str, Any], *, poll_seconds: float) -> None:
    """Show ``status`` and what becomes of it, until Ctrl-C."""
    trouble = ""
    try:
        with Live(auto_refresh=False) as live:
            while True:
                now = time.time()  # noqa: TID251 - a command is its own composition root
                live.update(render(status, now, trouble), refresh=True)
                time.sleep(poll_seconds)
                try:
                    status, trouble = client.read_status(), ""
                except AgentUnreachable as error:
                    trouble = f"what follows is old: {error}"
    except KeyboardInterrupt:
        return


def render(status: Mapping[str, Any], now: float, trouble: str) -> Group:
    """Return what is shown at one moment."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        # Reasons are sentences and may wrap; a cut name helps nobody.
        table.add_column(heading, no_wrap=heading != "REASON", overflow="fold")
    for row in rows(status, now):
        cells = [Text(cell) for cell in row]
        cells[STATE_COLUMN].stylize(STYLES.get(row[STATE_COLUMN], "yellow"))
        table.add_row(*cells)
    head = [Text(line) for line in head_lines(status, now)]
    head[0].stylize("bold green" if status.get("ready") else "bold red")
    warning = [Text(printable(trouble), style="red")] if trouble else []
    return Group(*warning, *head, Text(), table)
