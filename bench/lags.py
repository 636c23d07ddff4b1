"""How old the news are: from a burst of requests to a picker's page that shows it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.clients import LORAS, Clients
from bench.pickers import PERIOD_SECONDS, Pickers
from bench.report import NotMeasuredError, Table, median, milliseconds
from lab.vllm import Vllm, stream

BURSTS = 12
BURST_REQUESTS = 3
BURST_TOKENS = 48
CALM_SECONDS = (1.2, 1.8)
"""Between two bursts, by chance, so that sampling is at its slowest and at no fixed phase."""
SHOWN_SECONDS = 0.6
"""After a burst, for the last page that may show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lags:
    """From the sending of a burst to a page that shows it, in seconds."""

    state: str
    direct: list[float]
    through: list[float]


def measure(engine: Vllm, agent_port: int, *, busy: bool) -> Lags:
    """Send bursts and return when each of two pickers saw them; ``busy``: beside other requests."""
    # The clients have two requests at most.
    at_least = BURST_REQUESTS if busy else 1
    direct, through = [], []
    with (
        Pickers(engine.port, 1, reads=True) as at_engine,
        Pickers(agent_port, 1, reads=True) as at_agent,
        ExitStack() as running,
    ):
        if busy:
            running.enter_context(Clients(engine))
        for _ in range(BURSTS):
            time.sleep(random.uniform(*CALM_SECONDS))
            at_engine.reset()
            at_agent.reset()
            began = time.monotonic()
            burst = [
                threading.Thread(target=_burst, args=(engine.url, LORAS[number % 2]))
                for number in range(BURST_REQUESTS)
            ]
            for one in burst:
                one.start()
            for one in burst:
                one.join()
            time.sleep(SHOWN_SECONDS)
            seen = at_engine.first_load(at_least, began), at_agent.first_load(at_least, began)
            if seen[0] is not None and seen[1] is not None:
                direct.append(seen[0] - began)
                through.append(seen[1] - began)
    if not through:
        raise NotMeasuredError("no burst was seen by both pickers")
    return Lags(state="busy" if busy else "idle", direct=direct, through=through)


def _burst(url: str, name: str) -> None:
    list(stream(url, name, max_tokens=BURST_TOKENS))


def table(lags: Sequence[Lags]) -> Table:
    """Return what was measured."""
    rows = [
        (
            one.state,
            *(
                f"{milliseconds(median(times))}, {milliseconds(max(times))}"
                for times in (one.direct, one.through)
            ),
            f"{len(one.through)} of {BURSTS}",
        )
        for one in lags
    ]
    columns = ("engine before", "asking the engine", "asking the agent", "bursts seen by both")
    notes = (
        f"Median and longest time from the sending of {BURST_REQUESTS} requests to the first page "
        f"that shows them, of two pickers that ask every {PERIOD_SECONDS * 1000:g} ms.",
    )
    return Table("How soon a picker sees a burst", columns, tuple(rows), notes)
