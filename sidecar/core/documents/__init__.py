"""Texts to values: the four document formats, each with its own meaning. No I/O, no clock.

``parse_document`` recognises a format and returns what the text says, for every pod alike;
``resolve`` says what one entry means for one pod. What is wrong with one entry is a ``Problem``
beside its neighbours; only a text that is no document at all raises ``DocumentError``.
"""

from sidecar.core.documents.fields import check_name
from sidecar.core.documents.parsed import ParsedDocument, ParsedEntry, Placement
from sidecar.core.documents.recognise import format_of_key, is_known_key, parse_document
from sidecar.core.documents.resolve import Pod, is_in_share, resolve

__all__ = [
    "ParsedDocument",
    "ParsedEntry",
    "Placement",
    "Pod",
    "check_name",
    "format_of_key",
    "is_in_share",
    "is_known_key",
    "parse_document",
    "resolve",
]
