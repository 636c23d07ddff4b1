"""``hf://`` as it is written, and what it means: a repository, a revision, and a path in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from sidecar.core.redact import redact_source
from sidecar.errors import InvalidArtifact, UnsupportedSource

DEFAULT_REVISION = "main"
_OTHER_KINDS = frozenset({"datasets", "spaces", "kernels", "buckets"})
_SOURCE = re.compile(
    r"[hH][fF]://(?:models/)?(?P<repository>[^/@:]+/[^/@:]+)"
    r"(?:[@:](?P<revision>refs/pr/[0-9]+|refs/convert/[\w.-]+|[^/]*))?"
    r"(?:/(?P<path>.*))?",
    re.ASCII | re.DOTALL,
)
_NAME = re.compile(r"(?![.-])[\w.-]{1,96}(?<![.-])", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_REVISION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{")
"""What no name of a revision holds (git-check-ref-format)."""
_NO_PATH = re.compile(r"[\x00-\x1f\x7f?#%\\]")
"""What other readers of a URL, ``--allow-source`` among them, take for no part of a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A directory or a file of one model repository at one revision."""

    where: str
    """As it was written, for people."""
    repository: str
    """``namespace/name``."""
    revision: str
    """A branch, a tag, a full commit, or a reference such as ``refs/pr/3``."""
    path: str
    """Below the top, without slashes at its ends; empty: the whole repository."""
    is_directory: bool
    """The path cannot mean a single file."""

    @property
    def commit(self) -> str:
        """The revision when it is a full commit, which never moves; else nothing."""
        return self.revision if _COMMIT.fullmatch(self.revision) else ""


def parse_reference(source: str) -> Reference:
    """Take ``hf://[models/]namespace/name[@revision][/path]`` apart.

    The grammar is the hub's own (huggingface_hub, "HF URIs"): a slash in a revision is written
    ``%2F``, save in ``refs/pr/N`` and ``refs/convert/NAME``; a name without a namespace is none.
    KServe's ``hf://namespace/name:revision`` means the same, as no name has a colon.
    Raises ``UnsupportedSource`` for what is no model repository, ``InvalidArtifact`` for what no
    repository can have.
    """
    where = redact_source(source)
    found = _SOURCE.fullmatch(source)
    if source[len("hf://") :].partition("/")[0] in _OTHER_KINDS:
        raise UnsupportedSource(
            f"{where}: of the hub's repositories only models are fetched; write "
            "hf://namespace/name[@revision][/directory]"
        )
    if found is None or not _is_repository(found["repository"]):
        raise UnsupportedSource(
            f"{where}: this names no repository of the hub; write "
            "hf://namespace/name[@revision][/directory], as in hf://openai-community/gpt2@main"
        )
    revision = unquote(DEFAULT_REVISION if found["revision"] is None else found["revision"])
    if not revision.isprintable() or not revision or _NO_REVISION.search(revision):
        raise InvalidArtifact(
            f"{where}: what stands behind @ is no branch, tag or commit; a slash in the name of a "
            "branch is written %2F"
        )
    path = (found["path"] or "").strip("/")
    if _NO_PATH.search(path) or any(part in {"", ".", ".."} for part in path.split("/") if path):
        raise InvalidArtifact(
            f"{where}: the path in the repository is no plain one (no empty parts, no . or .., "
            "none of ?#%\\); name a directory that has a plain one"
        )
    return Reference(
        where=where,
        repository=found["repository"],
        revision=revision,
        path=path,
        is_directory=not path or source.endswith("/"),
    )


def _is_repository(name: str) -> bool:
    parts = name.split("/")
    is_plain = all(_NAME.fullmatch(part) for part in parts) and parts[0] not in _OTHER_KINDS
    # huggingface_hub, validate_repo_id.
    return is_plain and "--" not in name and ".." not in name and not name.endswith(".git")
