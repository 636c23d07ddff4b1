"""What a Triton model directory says of itself, read from ``config.pbtxt`` without protobuf."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.artifacts.files import DIRECTORY_MODE, source_errors
from sidecar.artifacts.listing import MODEL_CONFIG, is_version
from sidecar.errors import InvalidArtifact

MAX_CONFIG_BYTES = 16 << 20
_TOKEN = re.compile(
    r"""(?P<skip>[\s,;]+|\#[^\n]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<open>[{\[<])|(?P<close>[}\]>])|(?P<colon>:)
    |(?P<word>[^\s,;:{}\[\]<>"'#]+)""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonConfig:
    """The fields of ``config.pbtxt`` that matter before a load; empty where it has none."""

    name: str = ""
    platform: str = ""
    backend: str = ""
    parts: tuple[str, ...] = ()
    """Models that an ensemble's steps name, in order, each once."""
    is_ensemble: bool = False
    has_file_name: bool = False
    """It says under which names the model's files are found."""


def read_config(directory: Path) -> TritonConfig | None:
    """Read the configuration of a model directory; None when it has none.

    Raises ``InvalidArtifact`` when it is no text or its brackets and quotes do not close.
    """
    path = directory / MODEL_CONFIG
    if not path.exists():
        return None
    with source_errors(str(path)), path.open("rb") as handle:
        data = handle.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidArtifact(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; this is no config")
    try:
        return parse_config(data.decode())
    except ValueError as error:
        raise InvalidArtifact(f"{path}: {error}; correct the file") from error


def parse_config(text: str) -> TritonConfig:
    """Scan protobuf text for the few fields. Raises ``ValueError`` on text that cannot be one."""
    top: dict[str, str] = {}
    parts: list[str] = []
    is_ensemble = has_file_name = False
    for path, value in _fields(text):
        match path:
            case (("name" | "platform" | "backend") as field,):
                top[field] = value
            case ("ensemble_scheduling", *_, "model_name"):
                parts.append(value)
            case (("default_model_filename" | "cc_model_filenames"), *_):
                has_file_name = True
        is_ensemble = is_ensemble or path[0] == "ensemble_scheduling"
    return TritonConfig(
        name=top.get("name", ""),
        platform=top.get("platform", ""),
        backend=top.get("backend", ""),
        parts=tuple(dict.fromkeys(parts)),
        is_ensemble=is_ensemble or top.get("platform") == "ensemble",
        has_file_name=has_file_name,
    )


def _fields(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each scalar with the names that lead to it; an opened message yields too, empty."""
    stack: list[str] = []
    field = ""
    for kind, token, line in _tokens(text):
        if kind == "open":
            stack.append(field + token)
            if field:
                yield _path(stack), ""
            field = field if token == "[" else ""
        elif kind == "close":
            if not stack or stack[-1][-1] + token not in {"{}", "[]", "<>"}:
                raise ValueError(f"line {line}: {token!r} closes nothing")
            name = stack.pop()[:-1]
            # In a list of messages each further one belongs to the list's field.
            field = name if stack and stack[-1] == f"{name}[" else ""
        elif kind == "colon" or (kind == "string" and not field):
            # A string without a field continues the one before it.
            continue
        elif field:
            yield (*_path(stack), field), _plain(token) if kind == "string" else token
            field = field if stack and stack[-1] == f"{field}[" else ""
        else:
            field = token
    if stack or field:
        raise ValueError(f"it ends within {(field or stack[-1])!r}")


def _path(stack: list[str]) -> tuple[str, ...]:
    return tuple(one[:-1] for one in stack if one[:-1])


def _plain(quoted: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted[1:-1])


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    position, line = 0, 1
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ValueError(f"line {line}: cannot be read at {text[position : position + 20]!r}")
        position = found.end()
        if found.lastgroup != "skip":
            yield str(found.lastgroup), found[0], line
        line += found[0].count("\n")


def add_missing_version(directory: Path) -> None:
    """Give an ensemble the empty version directory that Triton insists on.

    Object stores and git cannot hold an empty directory, so most copies of an ensemble lack it.
    Raises ``OSError``.
    """
    try:
        config = read_config(directory)
    except InvalidArtifact:
        return
    if config is None or not config.is_ensemble or find_versions(directory):
        return
    (directory / "1").mkdir()
    (directory / "1").chmod(DIRECTORY_MODE)


def find_versions(directory: Path) -> tuple[str, ...]:
    """Return the names of the version directories, lowest first. Raises ``OSError``."""
    names = (one.name for one in directory.iterdir() if one.is_dir())
    return tuple(sorted(filter(is_version, names), key=int))
