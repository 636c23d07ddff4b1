"""The endpoint picker (EPP) of llm-d-router, v0.10: a program that you have, never built here.

It is taken from PATH, or from the lab's `bin` directory.

Worth knowing:
- **Its listeners bind all interfaces**, and there is no flag for that. Ports are free ones, the
  metrics are plain HTTP without authentication: run it where that is no matter.
- Started with file discovery it needs no cluster; with KUBECONFIG in `env` it follows Pods.
- Its configuration is decoded strictly: an unknown field ends it at the start, and the error says
  which.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab import LabError, directory
from lab.grpc_health import is_serving
from lab.process import Process, free_port
from lab.web import get

VERSION = "v0.10.0"
VERBOSE = 5
"""The verbosity at which the log tells everything that is read of an endpoint."""
RECENT_BYTES = 65536
NAME = "epp"
MISSING = (
    f"There is no EPP binary. Put llm-d-router's command `epp` ({VERSION}) on PATH, or into the "
    "`bin` folder of the lab directory (`python -m lab where` names it). From its image "
    f"ghcr.io/llm-d/llm-d-router-endpoint-picker:{VERSION} it can be copied out; from a checkout "
    "of github.com/llm-d/llm-d-router, `go build ./cmd/epp` makes it."
)
Labels = dict[str, str]
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", re.MULTILINE)
_FIELD = re.compile(r"(\w+):(map\[.*?\]|\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def find() -> Path | None:
    """The program, when there is one. Which version it is, it tells in its log only."""
    found = shutil.which(NAME) or shutil.which(NAME, path=str(directory() / "bin"))
    return Path(found) if found else None


def free_port_everywhere() -> int:
    """A port that is free on every address of this machine, of all 127.0.0.0/8 too."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        return port


def read_samples(page: str, name: str) -> list[tuple[Labels, float]]:
    """The samples of one series name on a page in the text format."""
    return [
        (dict(_LABEL.findall(labels)), float(value))
        for found, labels, value in _SAMPLE.findall(page)
        if found == name
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the picker believes of one endpoint."""

    active: frozenset[str]
    """The LoRAs that score as running there."""
    waiting: frozenset[str]
    max_loras: int
    running: int
    queued: int
    kv_usage: float


def _known(said: str) -> Known:
    fields = dict(_FIELD.findall(said))

    def names(field: str) -> frozenset[str]:
        listed = fields[field].removeprefix("map[").removesuffix("]")
        return frozenset(one.rpartition(":")[0] for one in listed.split())

    return Known(
        active=names("ActiveModels"),
        waiting=names("WaitingModels"),
        max_loras=int(fields["MaxActiveModels"]),
        running=int(fields["RunningRequestsSize"]),
        queued=int(fields["WaitingQueueSize"]),
        kv_usage=float(fields["KVCacheUsagePercent"]),
    )


class Epp:
    """One picker. Ready when its gRPC health service says that it serves."""

    def __init__(
        self,
        work: Path,
        config: str | Path,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        pool: str | None = "lab",
        verbosity: int = 2,
    ) -> None:
        """`config` is the text of an EndpointPickerConfig, or a file that holds one.

        `args` come last: a later flag wins over an earlier one. `pool` is None where an
        `--endpoint-selector` among them says it. `known` needs `verbosity=VERBOSE`.
        """
        program = find()
        if program is None:
            raise LabError(MISSING)
        work.mkdir(parents=True, exist_ok=True)
        if isinstance(config, str):
            (work / "epp.yaml").write_text(config)
            config = work / "epp.yaml"
        self.grpc_port = free_port_everywhere()
        self.health_port = free_port_everywhere()
        self.metrics_port = free_port_everywhere()
        self.metrics_url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        self.log = work / "epp.log"
        self.process = Process(
            NAME,
            [
                program,
                *([f"--pool-name={pool}"] if pool else []),
                f"--config-file={config}",
                "--secure-serving=false",
                "--metrics-endpoint-auth=false",
                "--tracing=false",
                f"--grpc-port={self.grpc_port}",
                f"--grpc-health-port={self.health_port}",
                f"--metrics-port={self.metrics_port}",
                # Its averages are 5 s old otherwise, and a test would wait for them.
                "--refresh-prometheus-metrics-interval=100ms",
                # Nobody here has to learn of its end by and by.
                "--drain-timeout=0s",
                "--emit-endpoint-scores",
                f"-v={verbosity}",
                *args,
            ],
            log=self.log,
            cwd=work,
            env=env,
        )

    def start(self, deadline: float = 30.0) -> Self:
        """Start, and wait until it serves; again after `stop` or `kill`, on the same ports."""
        self.process.start()
        self.process.wait_ready(lambda: is_serving(self.health_port), deadline)
        return self

    def stop(self) -> None:
        """End it in good order."""
        self.process.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    def page(self) -> str:
        """Its own metrics, in the text format."""
        answer = get(self.metrics_url)
        if answer.status != 200:
            raise LabError(f"{self.metrics_url} answered {answer.status}")
        return answer.text

    def samples(self, name: str) -> list[tuple[Labels, float]]:
        """The samples of one series name, now."""
        return read_samples(self.page(), name)

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels; 0 where there is none."""
        found = self.samples(name)
        return sum(value for given, value in found if labels.items() <= given.items())

    def known(self) -> dict[str, Known]:
        """What was lately read of each endpoint, by its name, off the log.

        A pod's endpoint is called as its entry of file discovery, or `<pod>-rank-0`.
        """
        start = max(0, self.log.stat().st_size - RECENT_BYTES)
        return {name: _known(said) for name, said in self._refreshed(start)}

    def refreshes(self, names: Collection[str]) -> int:
        """How often it has read the one of these endpoints that it has read least."""
        counts = Counter(name for name, _ in self._refreshed(0))
        return min(counts[name] for name in names)

    def _refreshed(self, start: int) -> Iterator[tuple[str, str]]:
        with self.log.open("rb") as handle:
            handle.seek(start)
            # The first line may be cut off, and the last one still being written.
            lines = handle.read().split(b"\n")[1 if start else 0 : -1]
        for line in lines:
            if b'"Refreshed metrics"' in line:
                said = json.loads(line)
                yield said["endpoint"]["name"], said["updated"]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
