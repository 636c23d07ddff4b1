"""YAML as Kubernetes reads it, to values and back, each text in the quotes that it had.

Kubernetes' own parser takes more words for numbers and switches than PyYAML does (`y`, `1e3`): a
text that lost its quotes, or got some, could come back as something else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

_TEXT = "tag:yaml.org,2002:str"
_NOT_OURS = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_NO_BASE_60 = r"(?!.*:)"
_MERGE = "tag:yaml.org,2002:merge"
MAX_VALUES: Final = 200_000
"""Of one document, each alias counted as all that it stands for."""
_AMBIGUOUS = re.compile(
    r"(?i)(y|n|yes|no|on|off|true|false|null|~|[-+]?\.?[0-9][0-9_.,:]*(e[-+]?[0-9]*)?|0[xob].*"
    r"|[0-9]{4}-.*|[-+]?\.(inf|nan)|<<|=)"
)
"""What some YAML parser may take for anything but a text."""


class Styled(str):
    """A text as it was written: in quotes, as a block, or plainly."""

    __slots__ = ("style",)
    style: str | None


class _Loader(yaml.SafeLoader):
    """Leaves as texts what Kubernetes reads as such: dates, `22:30`, and `=`."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _construct(loader: _Loader, node: ScalarNode) -> str:
    text = loader.construct_scalar(node)
    assert isinstance(text, str)
    styled = Styled(text)
    styled.style = node.style
    return styled


def _represent(dumper: _Dumper, text: str) -> Node:
    ours = '"' if _AMBIGUOUS.fullmatch(text) else None
    style = text.style if isinstance(text, Styled) else ours
    return dumper.represent_scalar(_TEXT, str(text), style=style)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(_NO_BASE_60 + pattern.pattern, re.VERBOSE) if tag in _NUMBERS else pattern)
        for tag, pattern in resolvers
        if tag not in _NOT_OURS
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(_TEXT, _construct)
_Dumper.add_representer(str, _represent)
_Dumper.add_representer(Styled, _represent)


class RefusedYaml(yaml.MarkedYAMLError):
    """It is YAML, and nothing that is taken; ``problem`` and ``problem_mark`` say why and where."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document whose values are yet to be made."""

    _loader: _Loader
    _node: Node

    def text_at(self, key: str) -> str:
        """Return a text on the highest level; nothing where there is none."""
        pairs = self._node.value if isinstance(self._node, MappingNode) else ()
        found = [value.value for name, value in pairs if name.value == key]
        return found[-1] if found and isinstance(found[-1], str) else ""

    def value(self) -> Any:  # noqa: ANN401 - any value
        """Return what it says. Raises ``yaml.YAMLError``, ``RefusedYaml`` for keys that stand
        twice in one object, and for more values than any object of Kubernetes has."""
        _count(self._node, {})
        return self._loader.construct_document(self._node)


def parse(text: str) -> Parsed | None:
    """Read one YAML document; None for an empty one. Raises ``yaml.YAMLError``."""
    loader = _Loader(text)
    node = loader.get_single_node()
    return None if node is None else Parsed(loader, node)


def _count(node: Node, counted: dict[Node, int]) -> int:
    """Return the number of values, with those of aliases; each node is looked at once."""
    if isinstance(node, ScalarNode):
        return 1
    if node in counted:
        return counted[node]
    # Until it is known: an alias within what it stands for has no end.
    counted[node] = MAX_VALUES + 1
    inner = node.value
    if isinstance(node, MappingNode):
        _check_keys(node)
        inner = [one for pair in node.value for one in pair]
    total = 1 + sum(_count(one, counted) for one in inner)
    if total > MAX_VALUES:
        raise RefusedYaml(None, None, f"more than {MAX_VALUES} values", node.start_mark)
    counted[node] = total
    return total


def _check_keys(node: MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode) or key.tag == _MERGE:
            continue
        if (key.tag, key.value) in seen:
            raise RefusedYaml(None, None, f"the key {key.value!r} stands twice", key.start_mark)
        seen.add((key.tag, key.value))


def dump(value: object) -> str:
    """Return one YAML document, keys in the order that they have."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=2**16,
        default_flow_style=False,
    )
