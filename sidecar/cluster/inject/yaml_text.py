"""YAML as Kubernetes reads it, to values and back, each text in the quotes that it had.

Kubernetes' own parser takes more words for numbers and switches than PyYAML does (`y`, `1e3`): a
text that lost its quotes, or got some, could come back as something else.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import Node, ScalarNode

_TEXT = "tag:yaml.org,2002:str"
_NOT_OURS = ("tag:yaml.org,2002:timestamp",)
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
    """Leaves dates as texts, which the API has no others of."""


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
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_OURS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(_TEXT, _construct)
_Dumper.add_representer(str, _represent)
_Dumper.add_representer(Styled, _represent)


def load(text: str) -> Any:  # noqa: ANN401 - any value
    """Parse one YAML document. Raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader=_Loader)


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
