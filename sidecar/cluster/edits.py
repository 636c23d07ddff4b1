"""Texts to texts: one entry more, or less, and everything else as it was. No I/O.

A text that is broken is never rewritten. What cannot be read, or would be lost on the way, is a
``DocumentError`` with its place; entries that are spoiled by themselves stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidecar.cluster.entries import OWNER, ModelEntry
from sidecar.cluster.yaml_splice import Delta, dump, has_comments, splice
from sidecar.core.desired import Format
from sidecar.core.documents import parse_document
from sidecar.core.documents.fields import shown
from sidecar.core.documents.nodes import Node
from sidecar.core.documents.recognise import MODEL_LIST_KEY
from sidecar.core.documents.text import MAX_BYTES, parse_text
from sidecar.errors import DocumentError

NATIVE_KEYS = ("models.yaml", "models.yml", "models.json")
"""In the order in which one is looked for; the first is for documents that are not there yet."""

_INDENT = re.compile(r"^( +)\S", re.MULTILINE)
_GO_ESCAPES = re.compile("[<>&\u2028\u2029]")

_NOT_YAML = re.compile(
    "[^\n -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
"""Characters that JSON allows as they are and YAML does not, or takes for the end of a line: a
``.yaml`` key may hold JSON."""

Item = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """What became of one text."""

    text: str | None
    """None where there was no document and none is needed."""
    changed: bool
    comments_lost: bool = False
    """Comments of the YAML text could not be kept."""
    others: tuple[str, ...] = ()
    """Owners of entries with the same name, which were left alone (Michelangelo)."""


def key_for(form: Format, keys: Sequence[str]) -> str:
    """Return the ConfigMap key of a format's document, given those that are there.

    Raises:
        DocumentError: where it may be either of two.
    """
    if form is Format.MICHELANGELO:
        return MODEL_LIST_KEY
    found = [key for key in NATIVE_KEYS if key in keys]
    if len(found) > 1:
        hint = "say which one is meant (--config-key), or move their entries into one"
        raise DocumentError(f"{' and '.join(found)} are both there", where=found[1], hint=hint)
    return found[0] if found else NATIVE_KEYS[0]


def add_entry(key: str, text: str | None, entry: ModelEntry) -> Edited:
    """Return the text with this entry, in the place of those that have its identity.

    Fields of theirs that no version of the format knows stay in it. Raises ``DocumentError``,
    also where the entry itself is not valid.
    """
    document = _Document.read(key, text, entry.format) if text is not None else None
    fields = entry.fields()
    owner = str(fields.get(OWNER, ""))
    if not owner and not (document is not None and document.has_owners):
        # The first generation, in which nobody owns anything.
        fields.pop(OWNER, None)
    _check_entry(key, entry.format, fields)
    if document is None:
        return Edited(text=_write_new(key, entry.format, fields), changed=True)
    mine = [at for at, item in document.find(entry.name) if document.owner(item) == owner]
    if not mine:
        return document.edited(Delta(appended=fields))
    old = document.items[mine[0]]
    assert isinstance(old, dict)
    # In their old order, so that nothing moves where nothing changes.
    kept = {
        name: fields.get(name, old[name])
        for name in old
        if name in fields or name not in entry.known_fields
    }
    replaced = (mine[0], {**kept, **fields})
    return document.edited(Delta(replaced=replaced, removed=frozenset(mine[1:])))


def remove_entry(key: str, text: str | None, form: Format, name: str, *, owner: str = "") -> Edited:
    """Return the text without the entries of this name, and with Michelangelo of this owner.

    Raises ``DocumentError``.
    """
    if text is None:
        return Edited(text=None, changed=False)
    document = _Document.read(key, text, form)
    owners = {at: document.owner(item) for at, item in document.find(name)}
    mine = frozenset(at for at in owners if owners[at] == owner)
    others = tuple(dict.fromkeys(owners[at] for at in owners if at not in mine))
    return document.edited(Delta(removed=mine), others=others)


@dataclass(frozen=True, slots=True)
class _Document:
    """A text that was read, and how it is written again."""

    key: str
    text: str
    form: Format
    root: Node

    @classmethod
    def read(cls, key: str, text: str, form: Format) -> _Document:
        found = parse_document(key, text, expected=True)
        root = parse_text(key, text)
        if found is None or found.format is not form:
            what = f"it is a document of another format: {found.format if found else 'none'}"
            raise DocumentError(what, where=key, hint=f"it was asked to be {form}")
        return cls(key, text, form, root)

    @property
    def _list(self) -> Node:
        top = self.root.value
        return top["models"] if isinstance(top, dict) else self.root

    @property
    def items(self) -> list[object]:
        """The entries, whatever they are."""
        plain = self._list.plain()
        assert isinstance(plain, list)
        return plain

    @property
    def has_owners(self) -> bool:
        """Whether the second generation wrote it."""
        is_theirs = self.form is Format.MICHELANGELO
        return is_theirs and any(isinstance(item, dict) and OWNER in item for item in self.items)

    def find(self, name: str) -> list[tuple[int, Item]]:
        """Return the entries of this name, with their places."""
        return [
            (at, item)
            for at, item in enumerate(self.items)
            if isinstance(item, dict) and item.get("name") == name
        ]

    def owner(self, item: Item) -> str:
        """Return whose entry it is; empty where it is nobody's."""
        return str(item.get(OWNER) or "") if self.form is Format.MICHELANGELO else ""

    def edited(self, delta: Delta, *, others: tuple[str, ...] = ()) -> Edited:
        """Return the text after ``delta``. Raises ``DocumentError``."""
        before, after = self.items, delta.apply(self.items)
        if _canonical(before) == _canonical(after):
            return Edited(text=self.text, changed=False, others=others)
        self._refuse_duplicates(delta)
        whole = self._with_items(after)
        if len(json.dumps(whole, ensure_ascii=False).encode()) > MAX_BYTES:
            what = f"it would be longer than {MAX_BYTES} bytes"
            hint = "a ConfigMap cannot hold more; divide it into several"
            raise DocumentError(what, where=self.key, hint=hint)
        if _is_json(self.key, self.text):
            text = _write_json(whole, self.text, self.form)
            return Edited(text=text, changed=True, others=others)
        for text, comments_lost in splice(self.text, before, delta):
            if self._says(text, whole):
                return Edited(text=text, changed=True, comments_lost=comments_lost, others=others)
        text = dump(whole)
        if not self._says(text, whole):
            what = "it cannot be written again without changing what it says"
            raise DocumentError(what, where=self.key, hint="edit it by hand")
        return Edited(text=text, changed=True, comments_lost=has_comments(self.text), others=others)

    def _with_items(self, items: list[object]) -> object:
        plain = self.root.plain()
        return {**plain, "models": items} if isinstance(plain, dict) else items

    def _says(self, text: str, whole: object) -> bool:
        try:
            return _canonical(parse_text(self.key, text).plain()) == _canonical(whole)
        except DocumentError:
            return False

    def _refuse_duplicates(self, delta: Delta) -> None:
        """One of two equal keys is not among the values that were read, and would be lost."""
        top = self.root.value
        aside = [top[name] for name in top if name != "models"] if isinstance(top, dict) else []
        items = self._list.value
        assert isinstance(items, list)
        kept = [item for at, item in enumerate(items) if at not in delta.touched]
        for node in (*aside, *kept):
            duplicate = node.find_duplicate()
            if duplicate is not None:
                what = f"the key {shown(duplicate[0])} stands twice"
                where = f"{self.key} (line {duplicate[1]})"
                raise DocumentError(what, where=where, hint="remove one of the two first")


def _check_entry(key: str, form: Format, fields: Item) -> None:
    """Raise ``DocumentError`` where the entry, alone, would be reported by an agent."""
    document = parse_document(key, _write_new(key, form, fields), expected=True)
    for problem in document.problems if document is not None else ():
        raise DocumentError(
            problem.what, where=f"the entry {shown(str(fields['name']))}", hint=problem.hint
        )


def _write_new(key: str, form: Format, fields: Item) -> str:
    """Return the text of a document that holds one entry."""
    if form is Format.MICHELANGELO:
        return _write_json([fields], "", form)
    whole = {"models": [fields]}
    return json.dumps(whole, indent=2) + "\n" if key.endswith(".json") else dump(whole)


def _is_json(key: str, text: str) -> bool:
    if key.endswith(".json"):
        return True
    try:
        return bool(json.loads(text.removeprefix("\ufeff")))
    except (ValueError, RecursionError):
        return False


def _write_json(whole: object, before: str, form: Format) -> str:
    """Write JSON as it was written before, or exactly as Michelangelo's controller does."""
    if form is Format.MICHELANGELO:
        # Go's MarshalIndent: no newline at the end, and these are escaped for HTML and scripts.
        text = json.dumps(whole, indent=2, ensure_ascii=False)
        return _GO_ESCAPES.sub(_escape, text)
    found = _INDENT.search(before)
    is_one_line = found is None and "\n" not in before.strip()
    indent = None if is_one_line else len(found.group(1)) if found is not None else 2
    text = json.dumps(whole, indent=indent, ensure_ascii=False)
    return _NOT_YAML.sub(_escape, text) + before[len(before.rstrip()) :]


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found.group()):04x}"


def _canonical(value: object) -> str:
    """Return equal texts for values that say the same; true is not 1, and 1 is not 1.0."""
    return json.dumps(value, sort_keys=True)
