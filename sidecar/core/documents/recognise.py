"""Which format a text is: by its key, then by its shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from sidecar.core.desired import Format, Problem
from sidecar.core.documents.fields import describe
from sidecar.core.documents.kserve import parse_kserve
from sidecar.core.documents.lora_syncer import TOP, parse_lora_syncer
from sidecar.core.documents.michelangelo import parse_michelangelo
from sidecar.core.documents.native import parse_native
from sidecar.core.documents.nodes import Node
from sidecar.core.documents.parsed import ParsedDocument
from sidecar.core.documents.text import parse_text
from sidecar.errors import DocumentError

MAX_PROBLEMS = 1000
"""Of one document; what lies beyond is only counted."""
MODEL_LIST_KEY = "model-list.json"
_MODELS_JSON = "models.json"
_NATIVE_KEYS = frozenset({"models.yaml", "models.yml", _MODELS_JSON})
_SYNCER_KEY = "configmap.yaml"
_SUFFIXES = (".yaml", ".yml", ".json")
_SYNCER_LINE = re.compile(rf"""^(\{{\s*)?["']?{TOP}["']?\s*:""", re.IGNORECASE | re.MULTILINE)
_PARSERS: dict[Format, Callable[[str, Node], ParsedDocument]] = {
    Format.NATIVE: parse_native,
    Format.MICHELANGELO: parse_michelangelo,
    Format.LORA_SYNCER: parse_lora_syncer,
    Format.KSERVE: parse_kserve,
}


def is_known_key(key: str) -> bool:
    """Tell whether the key alone says that its text must be a document."""
    return key in _NATIVE_KEYS or key == MODEL_LIST_KEY


def format_of_key(key: str) -> Format | None:
    """Return the format that the key alone tells; None where it takes a look at the text."""
    if key == MODEL_LIST_KEY:
        return Format.MICHELANGELO
    if key == _SYNCER_KEY:
        return Format.LORA_SYNCER
    return Format.NATIVE if key in _NATIVE_KEYS - {_MODELS_JSON} else None


def parse_document(key: str, text: str, *, expected: bool = False) -> ParsedDocument | None:
    """Return what a ConfigMap's key holds; None where it is nothing of ours.

    ``expected`` says that it must be a document: the user named its key, or it was one before.

    Raises:
        DocumentError: the text must be a document and is none, as a whole.
    """
    may_be_native = key in _NATIVE_KEYS or (expected and key != MODEL_LIST_KEY)
    expected = expected or is_known_key(key)
    if not expected and not _may_be_document(key, text):
        return None
    root = parse_text(key, text)
    found = _recognise(key, root, may_be_native=may_be_native)
    if found is not None:
        return _shortened(_PARSERS[found](key, root))
    if not root.value and isinstance(root.value, list) and expected:
        return ParsedDocument(key=key, format=Format.NATIVE)
    _refuse_misspelt(key, root)
    if not expected:
        return None
    raise DocumentError(
        f"the text holds {describe(root)} of no known format",
        where=f"{key} (line {root.line})",
        hint="write models: and below it a list of entries; models: [] where there are none",
    )


def _may_be_document(key: str, text: str) -> bool:
    if key == _SYNCER_KEY:
        return True
    if not key.endswith(_SUFFIXES):
        return False
    if key.endswith(".json") and ("storage_path" in text or "modelSpec" in text):
        return True
    return _SYNCER_LINE.search(text) is not None


def _shortened(document: ParsedDocument) -> ParsedDocument:
    more = len(document.problems) - MAX_PROBLEMS
    if more <= 0:
        return document
    rest = Problem(where=document.key, what=f"{more} more problems are not listed")
    return replace(document, problems=(*document.problems[:MAX_PROBLEMS], rest))


def _recognise(key: str, root: Node, *, may_be_native: bool) -> Format | None:
    if isinstance(root.value, dict):
        if TOP in root.value:
            return Format.LORA_SYNCER
        # models: is too common a word to claim it under every key.
        is_native = key in _NATIVE_KEYS or (may_be_native and "models" in root.value)
        return Format.NATIVE if is_native else None
    if isinstance(root.value, list):
        return _recognise_list(key, root.value)
    return None


def _recognise_list(key: str, items: list[Node]) -> Format | None:
    kserve = michelangelo = 0
    for item in items:
        if isinstance(item.value, dict):
            kserve += "modelName" in item.value or "modelSpec" in item.value
            michelangelo += "storage_path" in item.value or "s3_path" in item.value
    # Counted, so that one bad entry does not turn the whole list into another format.
    if kserve != michelangelo:
        return Format.KSERVE if kserve > michelangelo else Format.MICHELANGELO
    return {MODEL_LIST_KEY: Format.MICHELANGELO, _MODELS_JSON: Format.KSERVE}.get(key)


def _refuse_misspelt(key: str, root: Node) -> None:
    for name in root.value if isinstance(root.value, dict) else ():
        if name.casefold() == TOP.casefold():
            raise DocumentError(
                f"the key {name} is misspelt",
                where=f"{key} (line {root.line})",
                hint=f"write {TOP}",
            )
