"""ORAS artifacts, pushed by the library that the `oras` program is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lab import LabError
from lab.golang import Program, find
from lab.golang import install as install_program
from lab.install import run

MAIN = """package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/file"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// Usage: oras-push REFERENCE TYPE PATH[:MEDIA-TYPE]... with paths below the current directory.
func push(ctx context.Context, reference, kind string, paths []string) error {
	store, err := file.New(".")
	if err != nil {
		return err
	}
	defer store.Close()
	var layers []v1.Descriptor
	for _, given := range paths {
		path, mediaType, _ := strings.Cut(given, ":")
		name := filepath.ToSlash(filepath.Clean(path))
		layer, err := store.Add(ctx, name, mediaType, path)
		if err != nil {
			return err
		}
		layers = append(layers, layer)
	}
	options := oras.PackManifestOptions{Layers: layers}
	manifest, err := oras.PackManifest(ctx, store, oras.PackManifestVersion1_1, kind, options)
	if err != nil {
		return err
	}
	repository, err := remote.NewRepository(reference)
	if err != nil {
		return err
	}
	tag := repository.Reference.Reference
	if err := store.Tag(ctx, manifest, tag); err != nil {
		return err
	}
	repository.PlainHTTP = os.Getenv("ORAS_PLAIN_HTTP") != ""
	who := auth.Credential{
		Username: os.Getenv("ORAS_USERNAME"),
		Password: os.Getenv("ORAS_PASSWORD"),
	}
	repository.Client = &auth.Client{
		Client:     retry.DefaultClient,
		Cache:      auth.NewCache(),
		Credential: auth.StaticCredential(repository.Reference.Registry, who),
	}
	done, err := oras.Copy(ctx, store, tag, repository, tag, oras.DefaultCopyOptions)
	if err == nil {
		fmt.Println(done.Digest)
	}
	return err
}

func main() {
	if err := push(context.Background(), os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
"""

ORAS_PUSH = Program(
    name="oras-push",
    module="oras.land/oras-go/v2",
    version="v2.6.4",
    main=MAIN,
    # Ours alone; there is none on PATH to be asked.
    version_command=("--version",),
    oldest=(2, 6),
)
PUSH_TIMEOUT_SECONDS = 120.0


def push(
    reference: str,
    folder: Path,
    paths: Sequence[str],
    *,
    kind: str = "application/vnd.lab.model.v1",
    user: tuple[str, str] | None = None,
    authority: Path | None = None,
) -> str:
    """Push files and directories of a folder as one artifact; the digest of its manifest.

    A path may be followed by `:` and its media type. Without `authority` it is plain http.
    """
    program = find(ORAS_PUSH)
    if program is None:
        raise LabError("oras-push is not installed: run `python -m lab install sources`.")
    environment = {"SSL_CERT_FILE": str(authority)} if authority else {"ORAS_PLAIN_HTTP": "1"}
    if user is not None:
        environment |= {"ORAS_USERNAME": user[0], "ORAS_PASSWORD": user[1]}
    environment["NO_PROXY"] = os.environ.get("NO_PROXY", "") + ",127.0.0.1,localhost"
    return run(
        [program, reference, kind, *paths],
        timeout=PUSH_TIMEOUT_SECONDS,
        cwd=folder,
        env=environment,
    ).strip()


def install() -> None:
    """Build it, once."""
    install_program(ORAS_PUSH)
