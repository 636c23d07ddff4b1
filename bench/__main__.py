"""Run the benchmarks: `python -m bench`, or `python -m bench many page`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import edits, fetch, footprint, many, page, sampling
from bench.report import NotMeasuredError, Table, machine
from lab import LabError

BENCHMARKS: dict[str, Callable[[Path], list[Table]]] = {
    "edits": edits.run,
    "many": many.run,
    "page": page.run,
    "footprint": footprint.run,
    "fetch": fetch.run,
    "sampling": sampling.run,
}


def main() -> int:
    """Run what was asked for and print its tables; 1 when something was not measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark is named {unknown[0]}; there are: {', '.join(BENCHMARKS)}")
    print(f"{machine()}\n", flush=True)
    work = Path(tempfile.mkdtemp(prefix="model-sidecar-bench-"))
    try:
        for name in names:
            began = time.monotonic()
            for table in BENCHMARKS[name](work / name):
                print(f"{table}\n", flush=True)
            print(f"`python -m bench {name}`: {time.monotonic() - began:.0f} s\n", flush=True)
    except (NotMeasuredError, LabError) as error:
        print(f"{name}: {error}\nLogs are kept in {work}", file=sys.stderr)
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
