"""A store in a process that can be killed: ``python -m tests.support.fetching_agent``.

Arguments: the store's directory, the pod, the source, the prefix that is allowed, the size limit
(0: none). It prints the path of the revision, or the class of the error.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sidecar.artifacts.fetch import SourceOptions
from sidecar.artifacts.store import Store
from sidecar.errors import ArtifactError
from tests.support.loras import entry_for


async def main(root: str, pod: str, source: str, allowed: str, max_bytes: str) -> str:
    """Fetch one source into the store."""
    store = Store(
        Path(root),
        max_bytes=int(max_bytes) or None,
        pod_uid=pod,
        options=SourceOptions(allowed=(allowed,)),
    )
    await store.open()
    try:
        found = await store.fetch(entry_for(source), restore=None, progress=lambda *_: None)
    except ArtifactError as error:
        return type(error).__name__
    finally:
        await store.close()
    return found.path


if __name__ == "__main__":
    print(asyncio.run(main(*sys.argv[1:])))
