"""What obstore raises, in our words: one table.

Its messages quote the server's answer (which may repeat the key id and the string that was signed)
and the URL. Nothing of them is passed on but a status, a known word and a region.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from obstore import exceptions as foreign

from sidecar.artifacts.remote.objects_meanings import (
    CUT,
    PANIC,
    TRANSPORT,
    Story,
    tell,
    tell_answer,
)
from sidecar.errors import ArtifactError, FetchFailed, InvalidArtifact

Telling = Callable[[str, Story], ArtifactError]
"""From obstore's debug text to an error."""

DEBUG = "\n\nDebug source:\n"
_PANICS = frozenset({"pyo3_runtime.PanicException", "pyo3_async_runtimes.RustPanic"})
"""Of a thread that waits, and of an event loop. Neither class can be imported."""
_STATUS = re.compile(r"^ *status: (\d{3}),$", re.MULTILINE)
_BODY = "body: Some("
_URL = re.compile(r"^ *uri: Some\(\n.*\n *\),$", re.MULTILINE)


def _answered(usual: int) -> Telling:
    """Return what tells of an answer, with the status that such an error has where it names none.

    0: then there was no answer.
    """

    def told(debug: str, story: Story) -> ArtifactError:
        found = _STATUS.search(debug)
        status = int(found[1]) if found else usual
        if status:
            return tell_answer(status, debug.partition(_BODY)[2], story)
        # An object may be called anything, and its name is in the URL.
        rest = _URL.sub("", debug)
        return tell(next((one for needle, one in TRANSPORT if needle in rest), CUT), story)

    return told


def _tell_name(debug: str, story: Story) -> ArtifactError:
    return InvalidArtifact(
        f"{story.where}: an object there has an empty, `.` or `..` component or a control "
        "character in its name; rename it"
    )


def _tell_other(debug: str, story: Story) -> ArtifactError:
    return FetchFailed(
        f"{story.where}: cannot be asked for with these settings; check {story.dialect.endpoint}, "
        "the proxy and the certificates"
    )


FOREIGN: Mapping[type[Exception], Telling] = {
    foreign.PermissionDeniedError: _answered(403),
    foreign.UnauthenticatedError: _answered(401),
    FileNotFoundError: _answered(404),
    foreign.NotFoundError: _answered(404),
    foreign.PreconditionError: _answered(412),
    foreign.NotModifiedError: _answered(412),
    foreign.AlreadyExistsError: _answered(409),
    foreign.GenericError: _answered(0),
    foreign.InvalidPathError: _tell_name,
    foreign.JoinError: _tell_other,
    foreign.NotSupportedError: _tell_other,
    foreign.UnknownConfigurationKeyError: _tell_other,
    foreign.BaseError: _tell_other,
    NotImplementedError: _tell_other,
    OSError: _tell_other,
    ValueError: _tell_other,
}
"""All that obstore raises; an error of a class that is not named is told as its nearest base."""


def is_foreign(error: BaseException) -> bool:
    """Tell whether obstore raised this, be it a panic, which is no ``Exception``."""
    return isinstance(error, tuple(FOREIGN)) or _is_panic(error)


@contextmanager
def object_errors(story: Story) -> Iterator[None]:
    """Translate what obstore raises into ``ArtifactError``."""
    try:
        yield
    except BaseException as error:
        if not is_foreign(error):
            raise
        if _is_panic(error):
            raise tell(PANIC, story) from None
        told = next(FOREIGN[one] for one in type(error).__mro__ if one in FOREIGN)
        # The message says it twice, for people and for programs. In the second form what others
        # wrote is quoted and escaped.
        debug = str(error).rpartition(DEBUG)[2]
        # Not chained: a traceback would show the message that must not be shown.
        raise told(debug, story) from None


def _is_panic(error: BaseException) -> bool:
    return f"{type(error).__module__}.{type(error).__qualname__}" in _PANICS
