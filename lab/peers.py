"""What others bring files from S3 with, for the benchmarks to be measured against."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab import LabError
from lab.golang import Program, find
from lab.golang import install as install_program
from lab.install import Venv, install_venv, is_venv_ready, say, venv

MODULE = "github.com/rclone/rclone"
RCLONE = Program(
    name="rclone",
    module=MODULE,
    version="v1.75.1",
    package=MODULE,
    version_command=("version",),
    oldest=(1, 70),
)
AWS = "1.46.2"
AWS_RECIPE = f"awscli {AWS} recipe 1"


def _fill(made: Venv) -> None:
    say(f"aws: pip install awscli=={AWS}")
    made.pip("install", "--only-binary=:all:", f"awscli=={AWS}")


def install() -> None:
    """Install both, once."""
    install_program(RCLONE)
    install_venv("aws", AWS_RECIPE, _fill)


def find_aws() -> Path | None:
    """The aws program: the lab's, else PATH's."""
    if is_venv_ready("aws", AWS_RECIPE):
        return venv("aws").bin / "aws"
    on_path = shutil.which("aws")
    return Path(on_path) if on_path else None


def find_rclone() -> Path | None:
    """The rclone program: the lab's, else PATH's when it is new enough."""
    return find(RCLONE)


def aws() -> Path:
    """The aws program, which must be there."""
    return _needed(find_aws(), "aws")


def rclone() -> Path:
    """The rclone program, which must be there."""
    return _needed(find_rclone(), "rclone")


def _needed(found: Path | None, name: str) -> Path:
    if found is None:
        raise LabError(f"{name} is not installed: run `python -m lab install peers`.")
    return found
