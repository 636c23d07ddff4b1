"""``validate``: every problem of documents, each with its place."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sidecar.commands.manifests import Text, moved, read_file_text, read_objects
from sidecar.commands.output import count, problems_json, write_json, write_line
from sidecar.core.desired import Problem
from sidecar.core.documents import ParsedDocument, parse_document
from sidecar.core.documents.merge import claim_names
from sidecar.errors import DocumentError

STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found in all files."""

    documents: tuple[tuple[Text, ParsedDocument], ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()
    """What could not be told, which is nobody's fault."""


def main(arguments: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    """Check the files; return 0 when there is no problem, else 1."""
    routes = arguments.with_files or ()
    texts = read_files((*arguments.files, *routes))
    checked = check({file: texts[file] for file in arguments.files})
    if routes:
        checked = check_with(checked, {file: texts[file] for file in routes})
    if arguments.json:
        write_json(_json(checked))
    else:
        for problem in checked.problems:
            write_line(problem.line)
        for warning in checked.warnings:
            write_line(f"warning: {warning.line}")
        write_line(_summary(checked))
    return 1 if checked.problems else 0


def read_files(files: Iterable[str]) -> dict[str, str | Problem]:
    """Read each file once: standard input cannot be read again."""
    return {file: _read(file, _shown(file)) for file in dict.fromkeys(files)}


def check(files: Mapping[str, str | Problem]) -> Checked:
    """Check what was read of files; one that could not be read is a problem, too."""
    documents: list[tuple[Text, ParsedDocument]] = []
    problems: list[Problem] = []
    for file, text in files.items():
        shown = _shown(file)
        if isinstance(text, Problem):
            problems.append(text)
            continue
        found = read_file_text(shown, Path(file).name, text)
        problems.extend(found.problems)
        parsed = []
        failures = []
        for one in found.texts:
            try:
                document = parse_document(one.key, one.text, expected=not one.configmap)
            except DocumentError as error:
                where = moved(error.where, one.key, one.label)
                failures.append(Problem(where=where, what=str(error), hint=error.hint))
                continue
            if document is not None:
                parsed.append((one, _placed(document, one)))
        problems.extend(failures)
        problems.extend(problem for _, document in parsed for problem in document.problems)
        documents.extend(parsed)
        if found.is_manifest and not (parsed or failures or found.problems):
            hint = "a document is a key of a ConfigMap, such as models.yaml"
            problems.append(Problem(where=shown, what="no document is in it", hint=hint))
    return Checked(documents=tuple(documents), problems=(*problems, *_clashes(documents)))


def check_with(checked: Checked, files: Mapping[str, str | Problem]) -> Checked:
    """Return what was found with the routes in files, checked against the documents."""
    # Only those who ask for it pay for its import.
    from sidecar.cluster.routes import Object, check_routes

    objects: list[Object] = []
    problems: list[Problem] = []
    for file, text in files.items():
        shown = _shown(file)
        if isinstance(text, Problem):
            problems.append(text)
            continue
        nodes, failures = read_objects(shown, Path(file).name, text)
        problems.extend(failures)
        found = [one for node in nodes if (one := Object(file=shown, node=node)).kind]
        objects.extend(found)
        if not found and not failures:
            hint = "it needs an AIGatewayRoute, InferenceModelRewrite or InferenceModel"
            problems.append(Problem(where=shown, what="no route is in it", hint=hint))
    routes = check_routes([document for _, document in checked.documents], objects)
    problems = [*checked.problems, *problems, *routes.problems]
    return replace(checked, problems=tuple(problems), warnings=routes.warnings)


def _shown(file: str) -> str:
    return "standard input" if file == STANDARD_INPUT else file


def _read(file: str, shown: str) -> str | Problem:
    try:
        data = sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        return Problem(where=shown, what=f"it cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        return Problem(where=shown, what=f"it is not UTF-8 text (byte {error.start})")


def _placed(document: ParsedDocument, text: Text) -> ParsedDocument:
    """Return the document with places that begin with the file instead of the key."""
    return replace(
        document,
        key=text.label,
        entries={
            name: replace(entry, where=moved(entry.where, text.key, text.label))
            for name, entry in document.entries.items()
        },
        problems=tuple(
            replace(one, where=moved(one.where, text.key, text.label)) for one in document.problems
        ),
    )


def _clashes(documents: Sequence[tuple[Text, ParsedDocument]]) -> list[Problem]:
    """Return names that two documents claim which one agent would read together."""
    together: dict[str, dict[str, ParsedDocument]] = {}
    for text, document in documents:
        together.setdefault(text.merged_with, {})[document.key] = document
    return [problem for group in together.values() for problem in claim_names(group, {})[1]]


def _summary(checked: Checked) -> str:
    entries = sum(len(document.names) for _, document in checked.documents)
    found = count(len(checked.problems), "problem") if checked.problems else "no problems"
    documents = count(len(checked.documents), "document")
    warned = f", {count(len(checked.warnings), 'warning')}" if checked.warnings else ""
    return f"{documents}, {count(entries, 'entry', 'entries')}, {found}{warned}"


def _json(checked: Checked) -> dict[str, object]:
    documents = [
        {
            "file": text.file,
            "configmap": text.configmap,
            "key": text.key,
            "format": str(document.format),
            "entries": len(document.names),
        }
        for text, document in checked.documents
    ]
    return {
        "valid": not checked.problems,
        "documents": documents,
        "problems": problems_json(checked.problems),
        "warnings": problems_json(checked.warnings),
    }
