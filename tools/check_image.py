"""Runs the build steps of the Dockerfile without a container engine, and then what they made.

The steps are read from the Dockerfile itself: what its stage `build` copies and runs is copied
and run here, in a temporary directory that PREFIX and WORK point to. The result is then started
as the image would start it: as the image's user, with nothing of it writable. What this cannot
see is the base image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEP_TIMEOUT_SECONDS = 600.0
START_TIMEOUT_SECONDS = 60.0
# Imported late, by engine and by source: a file that is missing would be missed only in a cluster.
LATE_IMPORTS = "import asyncinotify, kubernetes.aio.client, tritonclient.http.aio, uvicorn"
OUR_PYTHON: str = getattr(sys, "_base_executable", sys.executable)


class ImageError(Exception):
    """The Dockerfile does not do what it should. The message says where."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile, its continued lines joined."""

    word: str
    rest: str


def parse_dockerfile(text: str) -> Iterator[Instruction]:
    """The instructions in order; comments, also those between continued lines, are dropped."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for joined in "\n".join(lines).replace("\\\n", " ").splitlines():
        if joined.strip():
            word, _, rest = joined.strip().partition(" ")
            yield Instruction(word.upper(), rest.strip())


def stage(instructions: Sequence[Instruction], name: str | None) -> list[Instruction]:
    """The instructions of one stage, or of the last one.

    Raises:
        ImageError: there is no such stage.
    """
    starts = [at for at, found in enumerate(instructions) if found.word == "FROM"]
    for begin, end in zip(starts, [*starts[1:], len(instructions)], strict=True):
        is_last = end == len(instructions)
        if (name is None and is_last) or (
            name and instructions[begin].rest.endswith(f" AS {name}")
        ):
            return list(instructions[begin + 1 : end])
    raise ImageError(f"The Dockerfile has no stage {name or 'at all'}.")


def only(instructions: Sequence[Instruction], word: str) -> str:
    """The argument of an instruction that a stage has exactly once."""
    found = [instruction.rest for instruction in instructions if instruction.word == word]
    if len(found) != 1:
        raise ImageError(f"The shipped stage has {len(found)} {word}, not one.")
    return found[0]


def run(
    command: Sequence[str | Path],
    *,
    timeout: float,
    cwd: Path,
    env: Mapping[str, str],
    uid: int | None,
) -> str:
    """Run a command as a user (None: ours) and return its output.

    Raises:
        ImageError: it failed, or was not done after `timeout` seconds.
    """
    shown = " ".join(str(part) for part in command)
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            cwd=cwd,
            env=dict(env),
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise ImageError(f"`{shown}` did not end within {timeout:.0f} s.") from exc
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-20:])
        raise ImageError(f"`{shown}` failed with {done.returncode}:\n{tail}")
    return done.stdout


def base_python(uid: int | None) -> str | None:
    """An interpreter outside any environment that a user can start; None when there is none."""
    names = [OUR_PYTHON, "/usr/bin/python3", "/usr/local/bin/python3"]
    probe = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    for name in names:
        try:
            run([name, "-c", probe], timeout=START_TIMEOUT_SECONDS, cwd=Path("/"), env={}, uid=uid)
        except (ImageError, OSError):
            continue
        return name
    return None


def choose_user(wanted: int) -> tuple[str, int | None]:
    """The interpreter to build on, and the user to start the result as (None: ourselves)."""
    if os.geteuid() != 0:
        sys.stdout.write("Only root can become the image's user: started as ourselves.\n")
        return OUR_PYTHON, None
    python = base_python(wanted)
    if python is None:
        sys.stdout.write("No Python here is open to other users: started as root.\n")
        return OUR_PYTHON, None
    return python, wanted


def copy(argument: str, work: Path) -> None:
    """One COPY from the checkout, which the allow list of .dockerignore must let through."""
    *sources, target = argument.split()
    allowed = set((ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines())
    for source in sources:
        if f"!{source}" not in allowed:
            raise ImageError(f"COPY {source}: .dockerignore keeps it from the builder.")
        path = ROOT / source
        if path.is_dir():
            shutil.copytree(path, work / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, work / target)


def build(steps: Sequence[Instruction], prefix: Path, work: Path, python: str) -> None:
    """Do what the stage `build` does."""
    bin_directory = work.parent / "bin"
    bin_directory.mkdir()
    (bin_directory / "python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n', encoding="utf-8")
    (bin_directory / "python").chmod(0o755)
    # Which index pip asks is a setting of the machine and stays; where it installs is not.
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    env |= {
        "PREFIX": str(prefix),
        "WORK": str(work),
        "PATH": f"{bin_directory}:{os.environ['PATH']}",
    }
    for step in steps:
        match step.word:
            case "ENV":
                # pip's cache stays on: only in an image would it be kept for good.
                pairs = dict(pair.split("=", 1) for pair in step.rest.split())
                env |= {name: value for name, value in pairs.items() if name != "PIP_NO_CACHE_DIR"}
            case "COPY":
                copy(step.rest, work)
            case "RUN":
                begun = time.monotonic()
                run(
                    ["sh", "-ec", step.rest],
                    timeout=STEP_TIMEOUT_SECONDS,
                    cwd=work,
                    env=env,
                    uid=None,
                )
                sys.stdout.write(f"{time.monotonic() - begun:5.1f} s  RUN {step.rest[:90]}...\n")
            case "ARG" | "WORKDIR":
                pass
            case _:
                raise ImageError(f"{step.word} in the build stage: this check does not know it.")


def listing(prefix: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time, to see that nothing was written."""
    files = (path for path in prefix.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def check_shipped(prefix: Path, entrypoint: str, uid: int | None) -> None:
    """Start what the image would start, and see that it is whole and leaves itself alone."""
    env = {"PATH": f"{prefix}/bin:/usr/bin:/bin", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    before = listing(prefix)
    command = re.findall(r'"([^"]+)"', entrypoint)
    program = shutil.which(command[0], path=str(prefix / "bin"))
    if program is None:
        raise ImageError(f"ENTRYPOINT {entrypoint}: {prefix}/bin has no such program.")

    def start(*arguments: str | Path) -> str:
        return run(arguments, timeout=START_TIMEOUT_SECONDS, cwd=Path("/"), env=env, uid=uid)

    begun = time.monotonic()
    version = start(program, *command[1:], "version")
    seconds = time.monotonic() - begun
    wanted = re.search(
        r'"(.+)"', (ROOT / "sidecar" / "__init__.py").read_text(encoding="utf-8").split("=")[1]
    )
    if wanted is None or wanted[1] not in version:
        raise ImageError(f"`{command[0]} version` says {version!r}.")
    start(prefix / "bin" / "python", "-c", LATE_IMPORTS)
    for package in ("sidecar", "adapters"):
        sources = list(prefix.glob(f"lib/python*/site-packages/{package}/**/*.py"))
        bare = [
            path for path in sources if not list(path.parent.glob(f"__pycache__/{path.stem}.*.pyc"))
        ]
        if bare or not sources:
            raise ImageError(
                f"{package}: {len(bare)} of {len(sources)} modules are not compiled: {bare[:3]}"
            )
    if list(prefix.glob("lib/python*/site-packages/pip")):
        raise ImageError("The shipped environment has a pip.")
    if listing(prefix) != before:
        raise ImageError(
            f"Something wrote into {prefix} while it ran; the image's root is read-only."
        )
    size = sum(bytes_ for bytes_, _ in before.values()) / 1e6
    sys.stdout.write(
        f"`{command[0]} version`: {version.strip()} in {seconds:.2f} s; {size:.0f} MB to ship\n"
    )


def main() -> int:
    """0 when the steps work and their result starts, else 1 and the reason on standard error."""
    instructions = list(parse_dockerfile((ROOT / "Dockerfile").read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        try:
            shipped = stage(instructions, None)
            python, uid = choose_user(int(only(shipped, "USER").partition(":")[0]))
            Path(folder).chmod(0o755)
            prefix, work = Path(folder) / "prefix", Path(folder) / "work"
            work.mkdir()
            build(stage(instructions, "build"), prefix, work, python)
            check_shipped(prefix, only(shipped, "ENTRYPOINT"), uid)
        except ImageError as exc:
            sys.stderr.write(f"image-check: {exc}\n")
            return 1
    sys.stdout.write("image-check: passed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
