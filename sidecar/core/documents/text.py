"""YAML and JSON to values with places."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NoReturn

import yaml
from yaml.constructor import SafeConstructor
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
)
from yaml.nodes import ScalarNode
from yaml.resolver import Resolver

from sidecar.core.documents.nodes import MERGE, Builder, Node, Scalar
from sidecar.errors import DocumentError

MAX_BYTES = 1_048_576
"""What one ConfigMap can hold."""

_LOADER: type[yaml.CSafeLoader] | type[yaml.SafeLoader] = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)
_TAG = "tag:yaml.org,2002:"
_NUMBERS = SafeConstructor()
_JSON_TOKEN = re.compile(r'"(?:[^"\\]+|\\.)*"|[\[\]{}]|[^\s,:\[\]{}"]+')


def parse_text(key: str, text: str) -> Node:
    """Return the value that ``text`` writes; ``key`` tells the notation and names the place.

    A key that ends in ``.json`` is JSON and nothing else; every other one is YAML.

    Raises:
        DocumentError: with line and column, where it is neither or exceeds a limit.
    """
    text = text.removeprefix("\ufeff")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise DocumentError("the text is no valid Unicode", where=key) from exc
    if size > MAX_BYTES:
        raise DocumentError(
            f"the text is longer than {MAX_BYTES} bytes",
            where=key,
            hint="a ConfigMap cannot hold more; divide it into several",
        )
    if key.endswith(".json"):
        return _parse_json(key, text)
    if text.lstrip()[:1] in ("{", "["):
        # Tabs are blanks in JSON and forbidden in YAML.
        try:
            return _parse_json(key, text)
        except DocumentError:
            return _parse_yaml(key, text)
    return _parse_yaml(key, text)


def _parse_json(key: str, text: str) -> Node:
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        raise DocumentError(
            f"it is no JSON: {exc.msg}",
            where=f"{key} (line {exc.lineno}, column {exc.colno})",
            hint="the last good list is kept until this is mended",
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise DocumentError(
            "it is no JSON that can be read: a number or the nesting exceeds every limit",
            where=key,
        ) from exc
    builder = Builder(key)
    line, seen = 1, 0
    for match in _JSON_TOKEN.finditer(text):
        line += text.count("\n", seen, match.start())
        seen = match.start()
        token = match.group()
        first = token[0]
        if first == '"':
            word = token[1:-1] if "\\" not in token else json.loads(token)
            builder.check_text(word, line)
            if builder.wants_name():
                builder.put_name(word)
            else:
                builder.put(Node(word, line))
        elif first == "{":
            builder.begin({}, line, None)
        elif first == "[":
            builder.begin([], line, None)
        elif first in "}]":
            builder.end()
        else:
            builder.put(Node(json.loads(token), line))
    return builder.root or Node(None, 1)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _parse_yaml(key: str, text: str) -> Node:
    builder = Builder(key)
    documents = 0
    for event in _events(key, text):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, ScalarEvent):
            _put_scalar(builder, event, line)
        elif isinstance(event, CollectionStartEvent):
            mapping = isinstance(event, MappingStartEvent)
            if event.tag not in (None, "!", _TAG + ("map" if mapping else "seq")):
                _refuse_tag(builder, event.tag, line)
            builder.begin({} if mapping else [], line, event.anchor)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            builder.end()
        elif isinstance(event, AliasEvent):
            builder.alias(str(event.anchor), line)
        elif isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                builder.fail("it holds more than one YAML document", line, "keep the first one")
    return builder.root or Node(None, 1)


def _events(key: str, text: str) -> Iterator[Event]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise DocumentError(
            f"it is no YAML: {exc.problem or exc.context}",
            where=key + place,
            hint="the last good document is kept until this is mended",
        ) from exc
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as exc:
        raise DocumentError(
            "it is no YAML: it holds characters that YAML does not allow", where=key
        ) from exc


def _put_scalar(builder: Builder, event: ScalarEvent, line: int) -> None:
    text = event.value
    builder.check_text(text, line)
    if builder.wants_name():
        is_merge = text == "<<" and event.implicit[0] and event.tag is None
        builder.put_name(MERGE if is_merge else text)
        if event.anchor is not None:
            builder.define(event.anchor, Node(text, line))
        return
    try:
        value = _scalar(text, _scalar_tag(builder, event, line))
    except (ValueError, KeyError) as exc:
        what = f"this is not the {str(event.tag).removeprefix(_TAG)} that its tag promises"
        if event.tag is None:
            what = "this number cannot be read; write it in quotes if it is text"
        raise DocumentError(what, where=f"{builder.key} (line {line})") from exc
    builder.put(Node(value, line), event.anchor)


def _scalar_tag(builder: Builder, event: ScalarEvent, line: int) -> str:
    if event.tag is None and event.implicit[0]:
        text = event.value
        candidates = Resolver.yaml_implicit_resolvers.get(text[:1], ())
        for tag, expression in candidates:
            if expression.match(text):
                return str(tag).removeprefix(_TAG)
        return "str"
    if event.tag in (None, "!"):
        return "str"
    name = str(event.tag).removeprefix(_TAG)
    if name not in ("str", "int", "float", "bool", "null"):
        _refuse_tag(builder, event.tag, line)
    return name


def _scalar(text: str, tag: str) -> Scalar:
    if tag == "null":
        return None
    if tag == "bool":
        return SafeConstructor.bool_values[text.lower()]
    if tag == "int":
        return int(_NUMBERS.construct_yaml_int(ScalarNode(_TAG + "int", text)))
    if tag == "float":
        return float(_NUMBERS.construct_yaml_float(ScalarNode(_TAG + "float", text)))
    # Dates too: in a document they are names and words, never points in time.
    return text


def _refuse_tag(builder: Builder, tag: object, line: int) -> NoReturn:
    builder.fail(f"the tag {str(tag)[:80]} is not allowed here", line, "remove the tag")
