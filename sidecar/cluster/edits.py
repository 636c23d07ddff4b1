"""Texts to texts: one entry more, or less, and everything else as it was. No I/O.

A text that is broken is never rewritten. What cannot be read, or would be lost on the way, is a
``DocumentError`` with its place; entries that are spoiled by themselves stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sidecar.cluster.entries import OWNER, ModelEntry
from sidecar.cluster.json_text import canonical, is_json, read_spelled, write_json
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
    def _nodes(self) -> list[Node]:
        nodes = self._list.value
        assert isinstance(nodes, list)
        return nodes

    @property
    def items(self) -> list[object]:
        """The entries, whatever they are."""
        return [node.plain() for node in self._nodes]

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
        if canonical(before) == canonical(after) and not self._mends(delta):
            return Edited(text=self.text, changed=False, others=others)
        self._refuse_duplicates(delta)
        whole = self._with_items(self.root.plain(), after)
        if len(json.dumps(whole, ensure_ascii=False).encode()) > MAX_BYTES:
            what = f"it would be longer than {MAX_BYTES} bytes"
            hint = "a ConfigMap cannot hold more; divide it into several"
            raise DocumentError(what, where=self.key, hint=hint)
        for text, comments_lost in self._proposals(before, delta, whole):
            if self._says(text, whole):
                return Edited(text=text, changed=True, comments_lost=comments_lost, others=others)
        what = "it cannot be written again without changing what it says"
        raise DocumentError(what, where=self.key, hint="edit it by hand")

    def _proposals(
        self, before: list[object], delta: Delta, whole: object
    ) -> Iterator[tuple[str, bool]]:
        """Yield texts that may say ``whole``, and whether each may lose comments."""
        if self.key.endswith(".json") or is_json(self.text):
            spelled = read_spelled(self.text)
            items = spelled["models"] if isinstance(spelled, dict) else spelled
            assert isinstance(items, list)
            after = _spelled_delta(delta, before, items).apply(items)
            yield write_json(self._with_items(spelled, after), self.text, self.form), False
            return
        yield from splice(self.text, before, delta)
        yield dump(whole), has_comments(self.text)

    def _mends(self, delta: Delta) -> bool:
        """Tell whether it rewrites an entry in which a key stands twice."""
        return any(self._nodes[at].find_duplicate() is not None for at in delta.touched)

    def _with_items(self, top: object, items: list[object]) -> object:
        return {**top, "models": items} if isinstance(top, dict) else items

    def _says(self, text: str, whole: object) -> bool:
        try:
            root = parse_text(self.key, text)
        except DocumentError:
            return False
        return root.find_duplicate() is None and canonical(root.plain()) == canonical(whole)

    def _refuse_duplicates(self, delta: Delta) -> None:
        """One of two equal keys is not among the values that were read, and would be lost."""
        top = self.root.value
        aside = [top[name] for name in top if name != "models"] if isinstance(top, dict) else []
        kept = [item for at, item in enumerate(self._nodes) if at not in delta.touched]
        for node in (*aside, *kept):
            duplicate = node.find_duplicate()
            if duplicate is not None:
                what = f"the key {shown(duplicate[0])} stands twice"
                where = f"{self.key} (line {duplicate[1]})"
                raise DocumentError(what, where=where, hint="remove one of the two first")


def _spelled_delta(delta: Delta, before: list[object], spelled: list[object]) -> Delta:
    """Return it with the numbers as they are written in the fields that stay."""
    if delta.replaced is None:
        return delta
    at, new = delta.replaced
    old, written = before[at], spelled[at]
    assert isinstance(old, dict)
    assert isinstance(written, dict)
    kept = {name for name in new if name in old and canonical(new[name]) == canonical(old[name])}
    fields = {name: written[name] if name in kept else new[name] for name in new}
    return replace(delta, replaced=(at, fields))


def _check_entry(key: str, form: Format, fields: Item) -> None:
    """Raise ``DocumentError`` where the entry, alone, would be reported by an agent."""
    # In YAML, which has every number that Python has.
    key = key if form is Format.MICHELANGELO else NATIVE_KEYS[0]
    document = parse_document(key, _write_new(key, form, fields), expected=True)
    for problem in document.problems if document is not None else ():
        raise DocumentError(
            problem.what, where=f"the entry {shown(str(fields['name']))}", hint=problem.hint
        )


def _write_new(key: str, form: Format, fields: Item) -> str:
    """Return the text of a document that holds one entry."""
    if form is Format.MICHELANGELO:
        return write_json([fields], "", form)
    whole = {"models": [fields]}
    return json.dumps(whole, indent=2) + "\n" if key.endswith(".json") else dump(whole)
