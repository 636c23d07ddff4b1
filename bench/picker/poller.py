"""Further pickers, as far as a page can tell: `python -m bench.picker.poller URL COUNT`.

Each asks every 50 ms on a connection that it keeps, and drops the turns that it is too late for, as
an EPP does. A line of JSON, every 0.1 s, says how many answers there were until then.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

PERIOD_SECONDS = 0.05
SAY_SECONDS = 0.1
TIMEOUT_SECONDS = 1.0


class Poller:
    """One picker."""

    def __init__(self, url: str) -> None:
        self.answered = 0
        self.failed = 0
        self._parts = urlsplit(url)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._parts.netloc, timeout=TIMEOUT_SECONDS)
        due = time.monotonic()
        while True:
            try:
                connection.request("GET", self._parts.path, headers={"Accept-Encoding": "gzip"})
                answer = connection.getresponse()
                answer.read()
                self.answered += answer.status == 200
                self.failed += answer.status != 200
            except (OSError, http.client.HTTPException):
                connection.close()
                self.failed += 1
            now = time.monotonic()
            due += PERIOD_SECONDS * (1 + max(0, (now - due) // PERIOD_SECONDS))
            time.sleep(max(0.0, due - now))


def main() -> None:
    """Ask until killed."""
    url, count = sys.argv[1], int(sys.argv[2])
    pollers = [Poller(url) for _ in range(count)]
    while True:
        said = {
            "at": time.monotonic(),
            "answered": sum(one.answered for one in pollers),
            "failed": sum(one.failed for one in pollers),
        }
        print(json.dumps(said), flush=True)
        time.sleep(SAY_SECONDS)


if __name__ == "__main__":
    main()
