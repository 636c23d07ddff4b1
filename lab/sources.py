"""The servers that artifacts are fetched from in tests: S3, GCS, Azure and an OCI registry."""

from __future__ import annotations

from lab import azure, gcs, oras, registry, s3

PROGRAMS = (*s3.PROGRAMS, gcs.FAKE_GCS, registry.REGISTRY, oras.ORAS_PUSH)


def install() -> None:
    """Build and install what is missing of them."""
    for component in (s3, gcs, registry, oras, azure):
        component.install()
