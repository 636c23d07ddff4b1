"""What is known of a source before its bytes are read, and what kind of artifact that makes it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adapters.base import Kind
from sidecar.artifacts.files import source_errors
from sidecar.artifacts.manifest import FileRecord
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import InvalidArtifact, UnsafeArtifact

MAX_FILES = 100_000
"""Files of one artifact: a tree with more is a mistake, and takes the agent's memory."""
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.pbtxt"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
LEFTOVERS = ("training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state")
"""Files that trainers leave beside a LoRA and that no engine reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a cheap look at a source says."""

    signature: str
    """Equal signatures mean equal bytes, unless the source changed within a tick of its clock."""
    newest_change: float
    """Unix time at which the newest of its files last changed; 0.0 where that is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Look):
    """A look together with the names and sizes of all files."""

    is_coarse: bool
    """The source's clock seems to count whole seconds."""
    files: tuple[tuple[str, int], ...]
    """Path and size in bytes; of an archive, none before it is unpacked."""
    directories: tuple[str, ...]
    packed_bytes: int | None = None
    """Size of the archives whose files are not known yet; None where there is no archive."""

    @property
    def bytes(self) -> int:
        """Size of all that is to be read."""
        return sum(size for _, size in self.files) + (self.packed_bytes or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one artifact may be."""

    max_files: int
    max_bytes: int | None
    """None: as much as there is room for."""


FREE_SIZE = Limits(max_files=MAX_FILES, max_bytes=None)


class Fetcher(Protocol):
    """One source. Methods block, run in a thread, and raise ``ArtifactError`` only."""

    @property
    def resumes(self) -> bool:
        """Tell whether ``bring`` goes on where an interrupted one of the same listing ended."""
        ...

    def list(self) -> Listing:
        """Look at every file without reading one."""
        ...

    def bring(self, workspace: Workspace) -> tuple[FileRecord, ...]:
        """Fill the workspace's directory with what ``list`` found.

        Raises ``files.Stopped`` soon after the workspace's ``stop`` is set, and ``SourceMoved``
        when the source changed meanwhile.
        """
        ...

    def close(self) -> None:
        """Give up connections; nothing can be asked afterwards."""
        ...


def find_kind(path: Path) -> Kind:
    """Tell what the directory at ``path`` holds.

    ``adapter_config.json`` makes a LoRA, a numeric version directory or ``config.pbtxt`` a model.
    Raises ``InvalidArtifact`` when it is neither, and ``NotFound`` when it is not there.
    """
    with source_errors(str(path)):
        names = os.listdir(path)
        directories = [name for name in names if (path / name).is_dir()]
    return kind_of(str(path), names, directories)


def kind_of(where: str, files: Iterable[str], directories: Iterable[str]) -> Kind:
    """Tell the kind by the paths of a tree. Raises ``InvalidArtifact``."""
    names = set(files)
    if ADAPTER_CONFIG in names:
        return Kind.LORA
    if MODEL_CONFIG in names or any(is_version(name) for name in directories):
        return Kind.MODEL
    raise InvalidArtifact(
        f"{where}: neither a LoRA ({ADAPTER_CONFIG}) nor a model ({MODEL_CONFIG} or a numeric "
        "version directory such as 1/); name the directory that holds them"
    )


def is_version(name: str) -> bool:
    """Tell whether Triton takes a directory of this name for a version."""
    return name.isascii() and name.isdigit()


def refuse_pickles(where: str, kind: Kind, files: Iterable[str]) -> None:
    """Raise ``UnsafeArtifact`` when a LoRA has pickled weights, which run code when read.

    Models are free to: ``model.pt`` is what Triton's PyTorch backend is given.
    """
    if kind is not Kind.LORA:
        return
    for path in files:
        name = path.rpartition("/")[2].lower()
        if name.endswith(PICKLES) and not name.startswith(LEFTOVERS):
            raise UnsafeArtifact(
                f"{where}: {path} is a pickle, which can run code when it is read; save the LoRA "
                "as adapter_model.safetensors and remove this file, or run with --allow-pickle"
            )


def check_files(
    where: str,
    kind: Kind | None,
    files: list[str],
    directories: Iterable[str],
    *,
    allow_pickle: bool,
) -> Kind:
    """Return what files with these paths are; ``kind`` is what they shall be.

    Raises ``InvalidArtifact`` and ``UnsafeArtifact``.
    """
    tops = {path.partition("/")[0] for path in files if "/" in path}
    kind = kind or kind_of(where, files, {*directories, *tops})
    if not files:
        raise InvalidArtifact(f"{where}: it holds no files")
    if not allow_pickle:
        refuse_pickles(where, kind, files)
    return kind
