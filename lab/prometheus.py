"""Prometheus and promtool from Debian's package, and the operator's resource definitions.

The package is unpacked into the lab and not installed: nothing of it starts, and nobody needs to be
root. Debian decides its version, which is written down beside it; what PATH has comes first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from lab import LabError, directory, grafana
from lab.golang import go
from lab.install import is_stamped, locked, run, say, write_stamp
from lab.process import Process, free_port
from lab.web import get, is_ok

PROMETHEUS, PROMTOOL = "prometheus", "promtool"
PACKAGE = "prometheus"
RECIPE = "debian prometheus recipe 1"
OPERATOR = "github.com/prometheus-operator/prometheus-operator"
OPERATOR_VERSION = "v0.85.0"
CRDS = ("podmonitors", "prometheusrules")
APT_TIMEOUT_SECONDS = 300.0
TOOL_TIMEOUT_SECONDS = 60.0


def _home() -> Path:
    return directory() / "prometheus"


def _program(name: str) -> Path | None:
    on_path = shutil.which(name)
    if on_path:
        return Path(on_path)
    unpacked = _home() / "usr" / "bin" / name
    return unpacked if is_stamped(_home(), RECIPE) and unpacked.is_file() else None


def find() -> Path | None:
    """The server: PATH's, else the lab's."""
    return _program(PROMETHEUS)


def _needed(name: str) -> Path:
    found = _program(name)
    if found is None:
        raise LabError(f"{name} is not installed: run `python -m lab install prometheus`.")
    return found


def version() -> str:
    """What the server says of itself, such as `2.42.0+ds`."""
    told = run([_needed(PROMETHEUS), "--version"], timeout=TOOL_TIMEOUT_SECONDS)
    return told.split("version ", 1)[-1].split()[0]


def promtool(*arguments: str | Path, cwd: Path) -> str:
    """Run promtool and return its output; what it finds wrong is a LabError."""
    return run([_needed(PROMTOOL), *arguments], timeout=TOOL_TIMEOUT_SECONDS, cwd=cwd)


def install() -> None:
    """Bring the programs, the resource definitions and what Grafana publishes, once."""
    _install_programs()
    _install_crds()
    grafana.install()


def _install_programs() -> None:
    if _program(PROMETHEUS) and _program(PROMTOOL):
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise LabError(
            "There is no prometheus and promtool on PATH, and no apt-get and dpkg-deb to bring "
            "Debian's package: install Prometheus, and put both programs on PATH."
        )
    with locked(PACKAGE):
        if _program(PROMETHEUS) and _program(PROMTOOL):
            return
        home = _home()
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        package = _download(home)
        run(["dpkg-deb", "-x", package, home], timeout=APT_TIMEOUT_SECONDS)
        told = run(["dpkg-deb", "-f", package, "Version"], timeout=TOOL_TIMEOUT_SECONDS).strip()
        (home / "version").write_text(f"{told}\n")
        package.unlink()
        write_stamp(home, RECIPE)
    say(f"{PACKAGE}: Debian's {told}")


def _download(home: Path) -> Path:
    """Download the package; with lists of our own where the machine's are missing or too old."""
    try:
        _apt("download", PACKAGE, cwd=home)
    except LabError:
        say(f"{PACKAGE}: apt's lists do not have it; fetching lists of our own")
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (home / "apt" / folder).mkdir(parents=True, exist_ok=True)
        ours = (
            *("-o", f"Dir::State={home}/apt/state", "-o", f"Dir::Cache={home}/apt/cache"),
            *("-o", "Dir::State::status=/var/lib/dpkg/status"),
        )
        _apt("update", *ours, cwd=home)
        _apt("download", PACKAGE, *ours, cwd=home)
        shutil.rmtree(home / "apt")
    return next(home.glob("*.deb"))


def _apt(*arguments: str, cwd: Path) -> None:
    run(
        ["apt-get", "-q", *arguments],
        timeout=APT_TIMEOUT_SECONDS,
        cwd=cwd,
        env={"LC_ALL": "C"},
        hint=f"Install {PACKAGE} yourself, or see that apt-get reaches a Debian mirror.",
    )


def _crds_home() -> Path:
    return directory() / f"prometheus-operator-{OPERATOR_VERSION}"


def crds() -> tuple[Path, ...]:
    """Files of the operator's resource definitions: PodMonitor and PrometheusRule."""
    if not is_stamped(_crds_home(), OPERATOR_VERSION):
        raise LabError(
            "The operator's resource definitions are not there: "
            "run `python -m lab install prometheus`."
        )
    return tuple(_crds_home() / f"{name}.yaml" for name in CRDS)


def _install_crds() -> None:
    home = _crds_home()
    if is_stamped(home, OPERATOR_VERSION):
        return
    program = go()
    with locked(home.name):
        if is_stamped(home, OPERATOR_VERSION):
            return
        home.mkdir(parents=True, exist_ok=True)
        told = run(
            [program, "mod", "download", "-json", f"{OPERATOR}@{OPERATOR_VERSION}"],
            timeout=APT_TIMEOUT_SECONDS,
            cwd=home,
            env={"GOWORK": "off"},
            hint="Check that Go reaches a module proxy (go env GOPROXY), and install again.",
        )
        module: dict[str, Any] = json.loads(told)
        files = Path(module["Dir"]) / "example" / "prometheus-operator-crd"
        for name in CRDS:
            shutil.copyfile(files / f"monitoring.coreos.com_{name}.yaml", home / f"{name}.yaml")
        write_stamp(home, OPERATOR_VERSION)
    say(f"prometheus-operator: resource definitions of {OPERATOR_VERSION}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series of an instant query's answer."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """One server with a configuration of its own. Everything it writes is under `work`."""

    def __init__(self, work: Path, config: Mapping[str, object]) -> None:
        """``config`` is its prometheus.yml, as a mapping; paths of rule files are from `work`."""
        work.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.log = work / "prometheus.log"
        # JSON is YAML, and needs no library.
        (work / "prometheus.yml").write_text(json.dumps(config, indent=1))
        self.process = Process(
            PROMETHEUS,
            [
                _needed(PROMETHEUS),
                f"--config.file={work / 'prometheus.yml'}",
                f"--storage.tsdb.path={work / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            log=self.log,
            cwd=work,
        )

    def start(self, deadline: float = 30.0) -> Self:
        """Start, and wait until it answers queries."""
        self.process.start()
        self.process.wait_ready(lambda: is_ok(f"{self.url}/-/ready"), deadline)
        return self

    def stop(self) -> None:
        """End it in good order."""
        self.process.stop()

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 (JSON has any shape)
        """The `data` of one answer of its API; an error of it is a LabError with its words."""
        answer = get(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=30.0).json()
        if answer["status"] != "success":
            raise LabError(f"Prometheus: {answer['error']}: {parameters or path}")
        return answer["data"]

    def query(self, expression: str) -> list[Series]:
        """The series of an expression now."""
        data = self.ask("query", query=expression)
        if data["resultType"] != "vector":
            raise LabError(f"Prometheus: no vector, but a {data['resultType']}: {expression}")
        return [
            Series(labels=one["metric"], value=float(one["value"][1])) for one in data["result"]
        ]

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are pending or firing now."""
        found: list[dict[str, Any]] = self.ask("alerts")["alerts"]
        return found

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
