"""Repositories of the stub hub: commits of files, with the names that git and LFS give them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HubBlob:
    """One file of a commit; in LFS, git has a pointer to it."""

    data: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
            f"size {len(self.data)}\n"
        ).encode()

    @property
    def git_sha1(self) -> str:
        content = self.pointer if self.is_lfs else self.data
        return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_sha1

    def entry(self, path: str) -> dict[str, Any]:
        """What the tree and paths-info endpoints say of it."""
        entry = {"type": "file", "oid": self.git_sha1, "size": len(self.data), "path": path}
        if self.is_lfs:
            entry["lfs"] = {
                "oid": self.sha256,
                "size": len(self.data),
                "pointerSize": len(self.pointer),
            }
        return entry


@dataclass
class HubRepository:
    """One model repository."""

    name: str
    readers: frozenset[str] | None = None
    """Tokens that may see it; None: it is public."""
    granted: frozenset[str] | None = None
    """Tokens whose accounts were let in; None: it is not gated."""
    is_disabled: bool = False
    commits: dict[str, dict[str, HubBlob]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    """Branches, tags and other references, by name."""

    def commit(self, files: dict[str, bytes], *, revision: str = "main") -> str:
        """Make these all the files of a revision, those of weights in LFS; return the commit."""
        listed = {
            path: HubBlob(data, path.endswith((".safetensors", ".bin", ".gz", ".pt")))
            for path, data in files.items()
        }
        known = "".join(f"{path}{blob.git_sha1}" for path, blob in sorted(listed.items()))
        commit = hashlib.sha1(f"{self.name}{len(self.commits)}{known}".encode()).hexdigest()
        self.commits[commit] = listed
        self.revisions[revision] = commit
        return commit

    def find_commit(self, revision: str) -> str | None:
        """Only a full commit is one: the hub knows no short ones."""
        return revision if revision in self.commits else self.revisions.get(revision)

    def info(self, commit: str, *, with_blobs: bool) -> dict[str, Any]:
        """What the model endpoint says: much more than anybody here wants to know."""
        siblings = [
            {"rfilename": path, "size": len(blob.data), "blobId": blob.git_sha1}
            if with_blobs
            else {"rfilename": path}
            for path, blob in self.commits[commit].items()
        ]
        return {
            "_id": "6512d5f0a1c2b3d4e5f60718",
            "id": self.name,
            "modelId": self.name,
            "author": self.name.partition("/")[0],
            "sha": commit,
            "lastModified": "2026-01-02T03:04:05.000Z",
            "createdAt": "2025-01-02T03:04:05.000Z",
            "private": self.readers is not None,
            "gated": "manual" if self.granted is not None else False,
            "disabled": self.is_disabled,
            "downloads": 7,
            "likes": 0,
            "tags": ["peft", "safetensors"],
            "library_name": "peft",
            "cardData": {"license": "apache-2.0", "base_model": "acme/base"},
            "siblings": siblings,
            "spaces": [],
        }

    def tree(self, commit: str, top: str, *, is_recursive: bool) -> list[dict[str, Any]] | None:
        """Entries below a directory, directories too; None when there is no such directory."""
        prefix = f"{top}/" if top else ""
        found: dict[str, dict[str, Any]] = {}
        for path, blob in self.commits[commit].items():
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                directory = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(f"{commit}{directory}".encode()).hexdigest()
                found[directory] = {"type": "directory", "oid": oid, "size": 0, "path": directory}
            found[path] = blob.entry(path)
        if top and not found:
            return None
        entries = [found[path] for path in sorted(found)]
        if is_recursive:
            return entries
        return [one for one in entries if "/" not in one["path"].removeprefix(prefix)]
