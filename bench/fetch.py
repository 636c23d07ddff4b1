"""Bringing 1 GiB from S3 to disk: against `aws s3 sync` and rclone, from a real server on loopback.

Once as one object, once as 2,000. All in the same run, one after another in turns, from a server
that has its files in the page cache, to the same disk; then the whole agent, from the edit to the
resident LoRA. The server runs on the same cores.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.documents import Mount, write_loras
from bench.processes import ROOT, Agent, Engine
from bench.report import NOT_MEASURED, NotMeasuredError, Table, median, megabytes, seconds
from lab import LabError
from lab.peers import find_aws, find_rclone
from lab.s3 import S3

BUCKET = "models"
GIB = 1 << 30
OBJECTS = 2000
TURNS = 5
AGENTS = 3
AT_ONCE = 4
"""As many as `--fetch-concurrency` allows by default."""
DEADLINE_SECONDS = 300.0
POLL_SECONDS = 0.01
LAYOUTS = {"one": "1 GiB in one object", "many": f"1 GiB in {OBJECTS:,} objects"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What bringing it once took."""

    seconds: float
    cpu: float
    memory: int
    """Peak resident bytes."""


Bring = Callable[[str, Path], Cost]
"""Brings one layout to a directory that is not there yet."""


def run(work: Path) -> list[Table]:
    """Measure, and return the tables."""
    try:
        server = S3(work / "s3").start()
    except LabError:
        return [Table("1 GiB from S3", ("tool", "time"), (("all of them", NOT_MEASURED),))]
    try:
        _fill(server, work / "files")
        return [*_compare(server, work), _whole_agent(server, work)]
    finally:
        server.stop()


def _fill(server: S3, work: Path) -> None:
    """Put two LoRAs of 1 GiB; that of many objects has files beside it that no engine reads."""
    [small] = write_loras(work / "loras", 1)
    bits = random.Random(1)
    weights, piece = work / "weights", GIB // OBJECTS
    header = _header(GIB)
    with weights.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _ in range(GIB >> 20):
            file.write(bits.randbytes(1 << 20))
    others = {}
    for number in range(OBJECTS):
        others[f"many/data/{number:04}.dat"] = path = work / f"{number:04}.dat"
        path.write_bytes(bits.randbytes(piece))
    server.make_bucket(BUCKET)
    server.put(BUCKET, "one/adapter_model.safetensors", weights)
    server.put_all(BUCKET, others)
    for layout in LAYOUTS:
        server.put(BUCKET, f"{layout}/adapter_config.json", small / "adapter_config.json")
    server.put(BUCKET, "many/adapter_model.safetensors", small / "adapter_model.safetensors")
    shutil.rmtree(work)


def _header(size: int) -> bytes:
    """Return the header of a LoRA's weights with so many bytes of tensors."""
    rank, half = 8, size // 2
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {"A": (rank, half // rank // 4), "B": (half // rank // 4, rank)}
    header = {
        f"{name}.lora_{part}.weight": {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [number * half, (number + 1) * half],
        }
        for number, (part, shape) in enumerate(shapes.items())
    }
    return json.dumps(header).encode()


def _compare(server: S3, work: Path) -> list[Table]:
    tools = {
        "model-sidecar": _ours(server, is_hashing=True),
        "model-sidecar, without hashing": _ours(server, is_hashing=False),
        "rclone copy --transfers 8 --multi-thread-streams 4": _rclone(server),
        "aws s3 sync": _aws(server),
    }
    return [_compare_layout(layout, tools, work) for layout in LAYOUTS]


def _compare_layout(layout: str, tools: Mapping[str, Bring | None], work: Path) -> Table:
    costs: dict[str, list[Cost]] = {name: [] for name in tools}
    for turn in range(TURNS):
        for name, bring in tools.items():
            if bring is not None:
                target = work / f"target-{turn}"
                costs[name].append(bring(layout, target))
                shutil.rmtree(target)
    return Table(
        f"{LAYOUTS[layout]} from S3 to disk",
        ("tool", "median", "fastest", "slowest", "CPU", "peak memory"),
        tuple(_row(name, found) for name, found in costs.items()),
        (
            f"{TURNS} turns. model-sidecar: from the first look at the bucket to the last file "
            "synced to disk, in a process that is running already, sha256 of every file. The tools "
            "sync nothing to disk; their time begins with their process.",
        ),
    )


def _row(name: str, costs: Sequence[Cost]) -> tuple[str, ...]:
    if not costs:
        return (name, NOT_MEASURED, "", "", "", "")
    taken = [one.seconds for one in costs]
    return (
        name,
        *map(seconds, (median(taken), min(taken), max(taken))),
        seconds(median([one.cpu for one in costs])),
        megabytes(max(one.memory for one in costs)),
    )


def _ours(server: S3, *, is_hashing: bool) -> Bring:
    def bring(layout: str, target: Path) -> Cost:
        order = {
            "url": f"s3://{BUCKET}/{layout}/",
            "environment": server.environment(),
            "target": str(target),
            "hash": is_hashing,
        }
        command = [sys.executable, "-m", "bench.fetch_once"]
        output, cost = _measure(command, {}, json.dumps(order).encode())
        said = json.loads(output)
        return Cost(seconds=said["seconds"], cpu=said["cpu"], memory=cost.memory)

    return bring


def _rclone(server: S3) -> Bring | None:
    if (program := find_rclone()) is None:
        return None
    settings = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENDPOINT": server.url,
        "REGION": server.region,
        "ACCESS_KEY_ID": server.root.access_key,
        "SECRET_ACCESS_KEY": server.root.secret_key,
    }
    environment = {f"RCLONE_CONFIG_LAB_{name}": value for name, value in settings.items()}
    command = [str(program), "copy", "--config=", "--transfers=8", "--multi-thread-streams=4"]

    def bring(layout: str, target: Path) -> Cost:
        return _measure([*command, f"lab:{BUCKET}/{layout}/", str(target)], environment)[1]

    return bring


def _aws(server: S3) -> Bring | None:
    if (program := find_aws()) is None:
        return None

    def bring(layout: str, target: Path) -> Cost:
        command = [str(program), "s3", "sync", "--quiet", f"s3://{BUCKET}/{layout}/", str(target)]
        return _measure(command, server.environment())[1]

    return bring


def _measure(
    command: Sequence[str], environment: Mapping[str, str], stdin: bytes = b""
) -> tuple[bytes, Cost]:
    """Run a program to its end. Raises ``NotMeasuredError`` when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, memory = time.monotonic(), 0
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stdin)
        process.stdin.close()
        while process.poll() is None:
            # Asked of the kernel while it runs: what it reports at the end has in it what the
            # process was before it was that program, a copy of this one.
            memory = max(memory, _peak_bytes(process.pid))
            if time.monotonic() - began > DEADLINE_SECONDS:
                process.kill()
            time.sleep(POLL_SECONDS)
        taken = time.monotonic() - began
        output = process.stdout.read()
    if process.returncode != 0:
        raise NotMeasuredError(f"{command[0]} failed: {output[-500:].decode(errors='replace')}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return output, Cost(seconds=taken, cpu=cpu, memory=memory)


def _peak_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _whole_agent(server: S3, work: Path) -> Table:
    """Run whole agents, each with an empty store and an edit that asks for LoRAs of 1 GiB."""
    secret = work / "credentials" / "bench"
    secret.mkdir(parents=True)
    for name, value in server.environment().items():
        (secret / name).write_text(value)
    rows = []
    for layout, words in LAYOUTS.items():
        costs = [
            _agent(work / f"agent-{layout}-{turn}", secret, [layout]) for turn in range(AGENTS)
        ]
        rows.append((words, *_row("", costs)[1:]))
    layouts = [*LAYOUTS] * (AT_ONCE // len(LAYOUTS))
    together = _agent(work / "agent-together", secret, layouts)
    rows.append((f"{AT_ONCE} of them at once, half of either kind", *_row("", [together])[1:]))
    return Table(
        "From the edit to the resident LoRA, the whole agent",
        ("LoRAs", "median", "fastest", "slowest", "CPU", "peak memory"),
        tuple(rows),
        (
            f"{AGENTS} agents for each row, the last one only one. Fetched, checked, committed to "
            "the store and loaded into the fake engine. The memory is that of the agent's process "
            "since its start.",
        ),
    )


def _agent(work: Path, secret: Path, layouts: Sequence[str]) -> Cost:
    mount = Mount(work / "config")
    mount.write("models: []\n")
    flags = [f"--config-dir={mount.path}", f"--credentials-dir={secret.parent}"]
    entries = [
        f"- {{name: {layout}-{number}, source: 's3://{BUCKET}/{layout}/', "
        f"credentials: {secret.name}}}\n"
        for number, layout in enumerate(layouts)
    ]
    with Engine(work) as engine, Agent(work, engine, flags) as agent:
        agent.wait_holds(0, DEADLINE_SECONDS)
        cpu = agent.cpu_seconds()
        began = mount.write("models:\n" + "".join(entries))
        ended = agent.wait_holds(len(layouts), DEADLINE_SECONDS)
        cost = Cost(
            seconds=(ended - began) / 1e9,
            cpu=agent.cpu_seconds() - cpu,
            memory=agent.peak_bytes(),
        )
    shutil.rmtree(work)
    return cost
