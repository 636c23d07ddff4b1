"""Bytes on disk: fetch, store, check before the engine sees them, and the agent's own memory.

Nothing incomplete is ever visible to an engine: files are staged, hashed, synced and renamed, and
the completion marker is the last thing written. Everything here raises ``ArtifactError`` only.
"""
