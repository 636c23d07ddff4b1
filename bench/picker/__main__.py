"""Run the comparison: `python -m bench.picker`, or one part of it, `scraping` or `routing`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from bench.picker import arms, routing, scraping
from bench.picker.place import Place, Shape
from bench.picker.tables import tables
from bench.report import NOT_MEASURED, NotMeasuredError, Table, machine
from lab import LabError, envoy, epp, vllm

PARTS = ("scraping", "routing")


def main() -> int:
    """Print the tables; 1 when something was not measured."""
    parser = _parser()
    flags = parser.parse_args()
    parts = flags.parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part is named {unknown[0]}; there are: {', '.join(PARTS)}")
    chosen = _chosen(parser, flags)
    if epp.find() is None:
        print(f"Nothing was measured. {epp.MISSING}", file=sys.stderr)
        return 1
    vllm.install()
    envoy.install()
    deadline = time.monotonic() + flags.minutes * 60
    began = time.monotonic()
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{machine()}; load averages at the start: {load}\n", flush=True)
    work = Path(tempfile.mkdtemp(prefix="model-sidecar-bench-"))
    try:
        is_complete = _measure(work, flags, parts, chosen, deadline)
    except (NotMeasuredError, LabError) as error:
        print(f"{error}\nLogs are kept in {work}", file=sys.stderr)
        return 1
    print(f"`python -m bench.picker`: {time.monotonic() - began:.0f} s", flush=True)
    if not is_complete:
        print(f"Some of it was not measured. Logs are kept in {work}", file=sys.stderr)
        return 1
    shutil.rmtree(work)
    return 0


def _parser() -> argparse.ArgumentParser:
    shape = Shape()
    parser = argparse.ArgumentParser(prog="python -m bench.picker", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--turns", type=int, default=3, help="of each part (default 3)")
    parser.add_argument("--minutes", type=float, default=14.5, help="to end within (default 14.5)")
    parser.add_argument("--scale", type=float, default=1.0, help="stretches the phases of routing")
    parser.add_argument("--seed", default="1", help="of the requests")
    parser.add_argument("--pods", type=int, default=shape.pods, help="3.3 GB each (default 2)")
    parser.add_argument("--slots", type=int, default=shape.slots, help="of each pod (default 4)")
    parser.add_argument("--loras", type=int, default=shape.loras, help="(default 16)")
    parser.add_argument("--rank", type=int, default=shape.rank, help="of the LoRAs (default 16)")
    parser.add_argument("--tokens", type=int, default=shape.tokens, help="per answer (default 4)")
    parser.add_argument("--capacity", type=float, help="in requests a second, not measured anew")
    parser.add_argument("--lora-labels", default=shape.labels, help="of the agents (default auto)")
    parser.add_argument("--arms", help="routers to compare, ';' between them (see --list)")
    parser.add_argument(
        "--weights", action="append", default=[], help='more weights: "lora 3, active-request 2"'
    )
    parser.add_argument("--list", action="store_true", help="list the routers, measure nothing")
    return parser


def _chosen(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> list[arms.Arm]:
    for weights in flags.weights:
        try:
            arms.parse_weights(weights)
        except ValueError as exc:
            parser.error(f"--weights: {exc}")
    known = {arm.key: arm for arm in arms.all_arms(tuple(flags.weights))}
    if flags.list:
        print("\n".join(known))
        sys.exit(0)
    if flags.arms is None:
        return list(known.values())
    keys = [key.strip() for key in flags.arms.split(";")]
    if unknown := [key for key in keys if key not in known]:
        parser.error(f"no router is {unknown[0]!r}; there are: {'; '.join(known)}")
    return [known[key] for key in keys]


def _measure(
    work: Path,
    flags: argparse.Namespace,
    parts: list[str],
    chosen: list[arms.Arm],
    deadline: float,
) -> bool:
    """Print tables as they come; tell whether every cell of them was measured."""
    shape = Shape(
        pods=flags.pods,
        slots=flags.slots,
        loras=flags.loras,
        rank=flags.rank,
        tokens=flags.tokens,
        labels=flags.lora_labels,
    )
    printed: list[Table] = []

    def show(found: list[Table]) -> None:
        printed.extend(found)
        print("\n\n".join(map(str, found)), end="\n\n", flush=True)

    with Place(work, shape, capacity=flags.capacity) as place:
        print(
            f"{shape.pods} pods of {shape.slots} slots, {shape.loras} LoRAs of rank {shape.rank} "
            f"on every pod, answers of {shape.tokens} tokens, agents with --lora-labels "
            f"{shape.labels}. Capacity, round robin straight to the engines: "
            f"{place.capacity:.1f} requests a second.\n",
            flush=True,
        )
        if "scraping" in parts:
            # What it leaves is for routing, whose turns are many times as long.
            until = time.monotonic() + (deadline - time.monotonic()) * scraping.PART_OF_TIME
            show(scraping.run(place, flags.turns, deadline=until))
        if "routing" in parts:
            results = routing.run(
                place,
                chosen,
                turns=flags.turns,
                scale=flags.scale,
                seed=flags.seed,
                deadline=deadline,
            )
            show(tables(place, results, chosen))
    return all(NOT_MEASURED not in cell for table in printed for row in table.rows for cell in row)


if __name__ == "__main__":
    sys.exit(main())
