"""What Grafana publishes of its dashboards' shape: the types of its npm package, checked by tsc.

It has no JSON Schema, and its linter is a program that no registry has; these types are generated
from the schema that Grafana itself is made with, and every release of it has them.
"""

from __future__ import annotations

import json
from pathlib import Path

from lab import LabError, directory
from lab.install import run
from lab.node import find_package, install_package, node

SCHEMA, SCHEMA_VERSION = "@grafana/schema", "13.2.3"
TYPESCRIPT, TYPESCRIPT_VERSION = "typescript", "6.0.3"
CHECK_TIMEOUT_SECONDS = 120.0
OPTIONS = {
    "strict": True,
    "noEmit": True,
    "skipLibCheck": True,
    "target": "es2022",
    "module": "esnext",
    "moduleResolution": "bundler",
    "types": [],
}


def install() -> None:
    """Bring the types and the compiler, once."""
    # The package's name has a folder in it, and so has that of its lock.
    (directory() / SCHEMA).parent.mkdir(parents=True, exist_ok=True)
    install_package(SCHEMA, SCHEMA_VERSION, {})
    install_package(TYPESCRIPT, TYPESCRIPT_VERSION, {})


def find() -> Path | None:
    """The compiler, when it and the types are installed."""
    types = find_package(SCHEMA, SCHEMA_VERSION, "")
    compiler = find_package(TYPESCRIPT, TYPESCRIPT_VERSION, "tsc")
    return compiler if types else None


def check(work: Path, source: str) -> None:
    """Compile one TypeScript source that may import the types; what is wrong is a LabError."""
    compiler = find()
    if compiler is None:
        raise LabError("Grafana's types are not installed: run `python -m lab install prometheus`.")
    work.mkdir(parents=True, exist_ok=True)
    (work / "node_modules").symlink_to(directory() / SCHEMA / "node_modules")
    (work / "check.ts").write_text(source)
    project = {"compilerOptions": OPTIONS, "files": ["check.ts"]}
    (work / "tsconfig.json").write_text(json.dumps(project))
    run([node().program, compiler, "--project", "."], timeout=CHECK_TIMEOUT_SECONDS, cwd=work)
