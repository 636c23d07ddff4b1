"""``inject``: manifests in, manifests with the agent in every engine's pods out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from sidecar.cluster.inject import Options, inject_stream, remove_stream
from sidecar.cluster.inject.model import DEFAULT_IMAGE, DEFAULT_STORE_SIZE
from sidecar.commands.output import count, printable
from sidecar.flags import UsageError

STANDARD_INPUT = "-"


def main(arguments: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    """Write the manifests; return 0, or 1 and write none where anything is in the way."""
    files = [(_shown(file), _read(file)) for file in dict.fromkeys(arguments.files)]
    remove, options = arguments.remove, _options(arguments)
    answer = remove_stream(files) if remove else inject_stream(files, options)
    for note in answer.notes:
        _tell(note)
    for unseen in answer.unseen:
        _tell(unseen.line)
    if not (arguments.remove or answer.engines or answer.problems):
        _tell("nothing in these manifests is seen to run vLLM, SGLang or Triton")
        return 1
    if answer.problems:
        for problem in answer.problems:
            _tell(problem.line)
        _tell(f"nothing is written: {count(len(answer.problems), 'problem')}")
        return 1
    if answer.unseen:
        _tell(f"nothing is written: {count(len(answer.unseen), 'engine')} may go without the agent")
        return 1
    if answer.lost_comments:
        _tell("comments within objects that changed are lost")
    sys.stdout.write(answer.text)
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        configmap=arguments.configmap,
        api=arguments.api,
        image=arguments.image or DEFAULT_IMAGE,
        store_size=arguments.store_size or DEFAULT_STORE_SIZE,
    )


def _shown(file: str) -> str:
    return "standard input" if file == STANDARD_INPUT else file


def _read(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"-f {file}: it cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"-f {file}: it is not UTF-8 text (byte {error.start})") from error


def _tell(line: str) -> None:
    sys.stderr.write(printable(line) + "\n")
