"""OpenAI's list of models, as engines answer it at ``/v1/models``."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.base import (
    EngineOptions,
    EngineProtocolError,
    Kind,
    Resident,
    agent_path,
    path_aliases,
)
from adapters.http import Answer

Card = Mapping[str, object]


def parse_cards(engine: str, answer: Answer) -> tuple[Card, ...]:
    """Return the model cards of an answer with status 200; each has a text ``id``.

    Raises ``EngineProtocolError`` for anything else.
    """
    body = answer.json()
    cards = body.get("data") if isinstance(body, dict) else None
    if isinstance(cards, list) and all(
        isinstance(card, dict) and isinstance(card.get("id"), str) for card in cards
    ):
        return tuple(cards)
    words = f"{engine} answered /v1/models with no list of models: {answer.words}"
    raise EngineProtocolError(words)


def base_cards(cards: tuple[Card, ...]) -> tuple[Card, ...]:
    """Return the cards of base models: those without a parent."""
    return tuple(card for card in cards if card.get("parent") is None)


def lora_cards(cards: tuple[Card, ...]) -> tuple[Card, ...]:
    """Return the cards of LoRAs."""
    return tuple(card for card in cards if card.get("parent") is not None)


def resident_lora(options: EngineOptions, card: Card) -> Resident:
    """Return a LoRA's card as a resident; its ``root`` is the path that it was loaded from."""
    name, root = str(card["id"]), card.get("root")
    if not isinstance(root, str):
        return Resident(name=name, kind=Kind.LORA)
    return Resident(
        name=name,
        kind=Kind.LORA,
        paths=frozenset({agent_path(options, root)}),
        aliases=path_aliases(options, root),
    )
