"""Lines for a shell, taken apart into simple commands: words, quotes, comments, redirections.

Source: POSIX, "Shell Command Language", 2.2 to 2.7, and bash's ``$'...'`` and ``&>``. It tells
apart what finding one command and its words takes: reserved words are words, and a substitution is
one piece that nobody looks into.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

MAX_CHARS: Final = 64 * 1024
_MAX_DEPTH: Final = 20
_BLANK = re.compile(r"(?:[ \t\r]|\\\n)+")
_PLAIN = re.compile(r"[^\s'\"\\$`;&|()<>]+")
_IN_QUOTES = re.compile(r"[^\"\\$`]+")
_OPERATOR = re.compile(r"[;&|()]")
_REDIRECTION = re.compile(r"&>>?|\d*(?:<<<|<<-?|<>|<&|>&|>>|>\||<|>)")
_DELIMITER = re.compile(r"[ \t]*['\"\\]?([\w.-]+)['\"]?")
_ANSI = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL)
_BACKTICKS = re.compile(r"`(?:[^`\\]|\\.)*`", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\d|[@*#?$!-])")
_NAME = re.compile(r"\$\{?(\w+)\}?")
_WORDS = frozenset({"$@", "${@}", "$*", "${*}"})
_JOINED = frozenset({"$*", "${*}"})


class ShellError(ValueError):
    """The line cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a word: a text, or a variable or substitution as it was written."""

    text: str
    is_expansion: bool = False
    is_quoted: bool = False


Word = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Expanded:
    """One word as the shell would pass it on, as far as that can be known."""

    text: str
    is_open: bool = False
    """It may turn out to be no word, or many."""


def simple_commands(script: str) -> list[list[Word]]:
    """Return the commands of a script, each as its words. Raises ``ShellError``."""
    if len(script) > MAX_CHARS:
        raise ShellError(f"it is longer than {MAX_CHARS // 1024} KiB")
    commands: list[list[Word]] = [[]]
    documents: list[str] = []
    at, is_target = 0, False
    while at < len(script):
        if blank := _BLANK.match(script, at):
            at = blank.end()
        elif script[at] == "#":
            at = _line_end(script, at)
        elif script[at] == "\n":
            commands.append([])
            at, is_target = _after_documents(script, at + 1, documents), False
        elif redirection := _REDIRECTION.match(script, at):
            at, is_target = redirection.end(), True
            delimiter = _DELIMITER.match(script, at)
            if delimiter and redirection[0].lstrip("0123456789") in ("<<", "<<-"):
                documents.append(delimiter[1])
                at, is_target = delimiter.end(), False
        elif _OPERATOR.match(script, at):
            commands.append([])
            at, is_target = at + 1, False
        else:
            word, at = _read_word(script, at)
            if not is_target:
                commands[-1].append(word)
            is_target = False
    return [command for command in commands if command]


def expand(
    word: Word, values: Mapping[str, str], arguments: Sequence[str] | None
) -> list[Expanded]:
    """Return the words that one becomes: ``values`` of variables, ``arguments`` for ``$@``.

    None for arguments that are not known.
    """
    found = _Words()
    for piece in word:
        name = _NAME.fullmatch(piece.text)
        value = values.get(name[1]) if piece.is_expansion and name else None
        if not piece.is_expansion:
            found.add(piece.text)
        elif piece.text in _WORDS and arguments is not None:
            if piece.is_quoted and piece.text in _JOINED:
                found.add(" ".join(arguments))
            elif piece.is_quoted:
                found.add_words(arguments)
            else:
                found.add_words([one for held in arguments for one in held.split()])
        elif value is None:
            is_many = piece.text in _WORDS or "[@]" in piece.text or "[*]" in piece.text
            found.add(piece.text, is_open=is_many or (not piece.is_quoted and found.is_new))
        elif piece.is_quoted:
            found.add(value)
        else:
            found.add_split(value)
    found.end()
    return found.done


class _Words:
    """Words that grow piece by piece."""

    def __init__(self) -> None:
        self.done: list[Expanded] = []
        self._text: str | None = None
        self._is_open = False

    @property
    def is_new(self) -> bool:
        return self._text is None

    def add(self, text: str, *, is_open: bool = False) -> None:
        self._text = (self._text or "") + text
        self._is_open |= is_open

    def end(self) -> None:
        if self._text is not None:
            self.done.append(Expanded(self._text, self._is_open))
        self._text, self._is_open = None, False

    def add_words(self, words: Sequence[str]) -> None:
        for index, one in enumerate(words):
            if index:
                self.end()
            self.add(one)

    def add_split(self, value: str) -> None:
        if value[:1].isspace():
            self.end()
        self.add_words(value.split())
        if value[-1:].isspace():
            self.end()


def _line_end(script: str, at: int) -> int:
    end = script.find("\n", at)
    return len(script) if end < 0 else end


def _after_documents(script: str, at: int, delimiters: list[str]) -> int:
    """Return where the line after the bodies of here-documents starts."""
    while delimiters and at < len(script):
        end = _line_end(script, at)
        if script[at:end].strip("\t") == delimiters[0]:
            del delimiters[0]
        at = min(end + 1, len(script))
    return at


def _read_word(script: str, at: int) -> tuple[Word, int]:
    pieces: list[Piece] = []
    while at < len(script):
        char = script[at]
        if plain := _PLAIN.match(script, at):
            pieces.append(Piece(plain[0]))
            at = plain.end()
        elif char == "'":
            end = _find(script, "'", at + 1)
            pieces.append(Piece(script[at + 1 : end]))
            at = end + 1
        elif ansi := _ANSI.match(script, at):
            pieces.append(Piece(ansi[1]))
            at = ansi.end()
        elif char == '"':
            quoted, at = _read_quoted(script, at + 1, 0)
            pieces += quoted
        elif char == "\\":
            if (escaped := script[at + 1 : at + 2]) != "\n":
                pieces.append(Piece(escaped))
            at += 2
        elif char in "$`":
            piece, at = _read_expansion(script, at, 0, is_quoted=False)
            pieces.append(piece)
        else:
            break
    return tuple(pieces), at


def _read_quoted(script: str, at: int, depth: int) -> tuple[list[Piece], int]:
    """Read what stands in double quotes, from behind the first to behind the second."""
    pieces = [Piece("")]
    while at < len(script):
        char = script[at]
        if char == '"':
            return pieces, at + 1
        if plain := _IN_QUOTES.match(script, at):
            pieces.append(Piece(plain[0]))
            at = plain.end()
        elif char == "\\":
            escaped = script[at + 1 : at + 2]
            kept = "" if escaped == "\n" else escaped if escaped in '"\\$`' else char + escaped
            pieces.append(Piece(kept))
            at += 2
        else:
            piece, at = _read_expansion(script, at, depth, is_quoted=True)
            pieces.append(piece)
    raise ShellError('a " has no second one')


def _read_expansion(script: str, at: int, depth: int, *, is_quoted: bool) -> tuple[Piece, int]:
    if script.startswith("$(", at):
        end = _closing(script, at + 2, "()", depth)
    elif script.startswith("${", at):
        end = _closing(script, at + 2, "{}", depth)
    elif script[at] == "`":
        if (found := _BACKTICKS.match(script, at)) is None:
            raise ShellError("a ` has no second one")
        end = found.end()
    elif (found := _VARIABLE.match(script, at)) is not None:
        end = found.end()
    else:
        return Piece("$"), at + 1
    return Piece(script[at:end], is_expansion=True, is_quoted=is_quoted), end


def _closing(script: str, at: int, pair: str, depth: int) -> int:
    """Return the place behind the bracket that closes the one before ``at``."""
    if depth > _MAX_DEPTH:
        raise ShellError("substitutions are nested too deeply")
    opened = 1
    while at < len(script):
        char = script[at]
        at += 1
        if char == pair[0]:
            opened += 1
        elif char == pair[1]:
            opened -= 1
            if not opened:
                return at
        elif char == "'":
            at = _find(script, "'", at) + 1
        elif char == '"':
            at = _read_quoted(script, at, depth + 1)[1]
        elif char == "\\":
            at += 1
    raise ShellError(f"a {pair[0]} has no {pair[1]}")


def _find(script: str, what: str, at: int) -> int:
    if (found := script.find(what, at)) < 0:
        raise ShellError(f"a {what} has no second one")
    return found
