"""``status``: what a running agent says, as a table, as JSON, and awaited."""

import contextlib
import http.server
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from adapters.base import Kind
from sidecar.cli import main
from sidecar.commands.live import render
from sidecar.commands.table import HEADINGS, age, head_lines, rows, table_lines
from sidecar.core.status import (
    DocumentStatus,
    EngineCondition,
    EngineStatus,
    State,
    Status,
    StoreStatus,
    TargetStatus,
    to_json,
)

NOW = 1_000_000.0


def target(name, state=State.RESIDENT, **fields):
    known: dict[str, Any] = {
        "kind": Kind.LORA,
        "source": "/x",
        "desired": True,
        "readiness": "initial",
    }
    return TargetStatus(name=name, state=state, **(known | fields))


def recorded(*targets, **fields):
    known: dict[str, Any] = {
        "version": "1.0",
        "pod": "chat-0",
        "ready": True,
        "converged": True,
        "reasons": (),
        "cycle": "generation 7: converged, 1 target",
        "document": DocumentStatus(
            generation=7,
            observed_generation=7,
            formats=("native",),
            source="configmap chat/models",
            accepted_at=NOW - 65,
            valid=True,
        ),
        "engine": EngineStatus(
            kind="vllm", urls=("http://127.0.0.1:8000",), state=EngineCondition.UP, slots=4
        ),
        "store": StoreStatus(bytes=3 << 30, max_bytes=50 << 30, revisions=12),
        "targets": {one.name: one for one in targets},
    }
    return to_json(Status(**(known | fields)))


@contextlib.contextmanager
def served(answer: Callable[[str], object]) -> Iterator[str]:
    """Serve ``answer(path)``: bytes as they are, a number as a status code, else as JSON."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            said = answer(self.path)
            code = said if isinstance(said, int) else 200
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def status(capsys, *argv):
    code = main(["status", *argv])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def test_table_has_a_row_a_target(capsys):
    answer = recorded(target("sql", revision="abcdef0123456789", bytes=2048), target("chat"))
    with served(lambda _: answer) as url:
        code, lines, _ = status(capsys, "--url", url)
    assert code == 0
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == list(HEADINGS)
    assert [line.split()[0] for line in table[1:]] == ["chat", "sql"]
    assert table[2].split()[:5] == ["sql", "lora", "resident", "abcdef012345", "initial"]


def test_head_tells_how_the_pod_stands():
    document = DocumentStatus(
        generation=8,
        observed_generation=7,
        formats=("native",),
        source="dir /config",
        accepted_at=NOW - 65,
        problems=({"where": "models.yaml: x", "what": "wrong", "hint": "mend"},),
    )
    lines = head_lines(
        recorded(ready=False, converged=False, reasons=("It starts.",), document=document), NOW
    )
    assert lines == [
        "pod chat-0: not ready, not converged",
        "  generation 7: converged, 1 target",
        "  It starts.",
        "document dir /config: native, generation 8 (converged last: 7), accepted 1m ago, "
        "the last good one: what is there now is not valid",
        "  models.yaml: x: wrong; mend",
        "engine vllm at http://127.0.0.1:8000: up, 4 LoRA slots",
        "store: 12 revisions, 3.0 GiB of 50.0 GiB",
    ]


def test_pod_without_a_document_says_so():
    lines = head_lines(recorded(document=DocumentStatus(source="dir /config")), NOW)
    assert "document dir /config: none accepted" in lines


def test_row_tells_progress_reason_and_the_next_attempt():
    answer = recorded(
        target(
            "a",
            State.FETCHING,
            bytes=512 << 20,
            total_bytes=2 << 30,
            bytes_per_second=64 << 20,
            since=NOW - 7,
        ),
        target("b", State.FAILED, reason="FetchFailed", message="403", retry_at=NOW + 30),
        target("c", desired=False),
    )
    first, second, third = rows(answer, NOW)
    assert first[5:] == ("7s", "25 % 512.0 MiB of 2.0 GiB, 64.0 MiB/s", "")
    assert second[2] == "failed"
    assert second[7] == "FetchFailed: 403 (again in 30s)"
    assert third[4] == "not desired"


@pytest.mark.parametrize(
    ("state", "fields", "shown"),
    [
        (State.FETCHING, {}, "0 B"),
        (State.FETCHING, {"bytes": 5, "bytes_per_second": 0.0}, "5 B, 0 B/s"),
        (State.RESIDENT, {"bytes": 2048}, "2.0 KiB"),
        (State.RESIDENT, {}, "-"),
        (State.RESIDENT, {"bytes": 1, "total_bytes": 4}, "fetching 25 % 1 B of 4 B"),
        (State.RESIDENT, {"bytes": 1, "bytes_per_second": 2.0}, "fetching 1 B, 2 B/s"),
    ],
)
def test_progress_is_told_of_what_is_fetched_whatever_serves_meanwhile(state, fields, shown):
    ((*_, progress, _),) = rows(recorded(target("a", state, **fields)), NOW)
    assert progress == shown


def test_columns_are_aligned():
    lines = table_lines(rows(recorded(target("a"), target("a-longer-name")), NOW))
    assert len({line.index("lora") for line in lines[1:]} | {lines[0].index("KIND")}) == 1


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.4, "0s"), (59.9, "59s"), (60, "1m"), (7200, "2h"), (2e5, "2d")],
)
def test_ages(seconds, shown):
    assert age(seconds) == shown


def test_json_is_what_the_agent_said(capsys):
    answer = recorded(target("sql\x1b[2J"))
    with served(lambda _: answer) as url:
        assert main(["status", "--url", url, "--json"]) == 0
    said = capsys.readouterr().out
    assert json.loads(said) == answer
    assert said.replace("\n", "").isprintable()


def test_nothing_that_the_agent_says_steers_the_terminal(capsys):
    bad = "x\x1b]0;t\x07\r\n\u202e"
    answer = recorded(
        target(bad, State.FAILED, reason=bad, message=bad), cycle=bad, reasons=(bad,), pod=bad
    )
    with served(lambda _: answer) as url:
        _, lines, _ = status(capsys, "--url", url)
        console = Console(width=200, record=True, force_terminal=True)
        with console.capture() as shown:
            console.print(render(answer, NOW, bad))
    assert all(line.isprintable() for line in lines)
    assert "\x07" not in shown.get()
    assert "\x1b]" not in shown.get()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (404, "answers 404"),
        (b"<html>", "no JSON"),
        ({"status": "ok"}, "no targets"),
        ({"targets": {"a": 1}}, "no targets"),
        ([], "no targets"),
    ],
)
def test_what_is_no_agent_is_said_to_be_none(answer, said, capsys):
    with served(lambda _: answer) as url:
        code, lines, error = status(capsys, "--url", url)
    assert (code, lines) == (1, [])
    assert f"what listens at {url} is no model-sidecar agent" in error
    assert said in error


def test_agent_that_is_not_there_is_failure_with_what_to_do(capsys):
    code, lines, error = status(capsys, "--url", "http://127.0.0.1:1")
    assert (code, lines) == (1, [])
    assert "no agent answers at http://127.0.0.1:1 (Connection refused)" in error
    assert "kubectl port-forward" in error


@pytest.mark.parametrize(
    "url", ["localhost:9110", "ftp://x", "http://", "http://x:y", "http://a b"]
)
def test_url_that_is_none_is_bad_usage(url, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["status", "--url", url])
    assert caught.value.code == 64
    assert "--url" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [("--timeout", "0"), ("--timeout", "x"), ("--wait", "ready")])
def test_wait_that_is_none_is_bad_usage(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["status", *argv])
    assert caught.value.code == 64
    assert argv[0] in capsys.readouterr().err


def test_wait_ends_as_soon_as_the_agent_converged(capsys):
    asked = []

    def answer(path):
        asked.append(path)
        return recorded(target("sql"), converged=len(asked) > 1)

    with served(answer) as url:
        code, lines, error = status(capsys, "--url", url, "--wait", "converged", "--timeout", "60")
    assert (code, error) == (0, "")
    assert lines[0] == "pod chat-0: ready, converged"
    assert len(asked) == 2
    assert all(path.startswith("/status?wait=converged&timeout=") for path in asked)


def test_wait_that_is_over_says_what_has_not_converged(capsys):
    answer = recorded(
        target("good"),
        target("sql", State.FAILED, reason="FetchFailed", message="403"),
        converged=False,
    )
    with served(lambda _: answer) as url:
        code, lines, error = status(capsys, "--url", url, "--wait", "converged", "--timeout", "0.1")
    assert code == 1
    assert lines[0].endswith("not converged")
    assert error == ("model-sidecar status: not converged within 0.1 s: sql (FetchFailed: 403)\n")


def test_wait_for_an_agent_that_never_comes_says_so(capsys):
    code, lines, error = status(
        capsys, "--url", "http://127.0.0.1:1", "--wait", "converged", "--timeout", "0.1"
    )
    assert (code, lines) == (1, [])
    assert "not converged within 0.1 s: no agent answers" in error


def test_proxies_of_the_environment_are_not_used(capsys, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with served(lambda _: recorded()) as url:
        assert status(capsys, "--url", url)[0] == 0


def test_terminal_shows_a_live_table_until_ctrl_c():
    names = ["first", "second"]

    def answer(_):
        return recorded(target(names.pop(0) if len(names) > 1 else names[0]))

    ours, theirs = pty.openpty()
    with served(answer) as url:
        command = [sys.executable, "-m", "sidecar", "status", "--url", url]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
        live = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        try:
            read_until(ours, b"second")
            live.send_signal(signal.SIGINT)
            rest = read_until(ours, b"")
            assert live.wait(30) == 0
        finally:
            live.kill()
            live.wait()
            os.close(ours)
    assert b"Traceback" not in rest


def read_until(descriptor: int, wanted: bytes) -> bytes:
    """Read until ``wanted`` was seen; until the end where it is empty."""
    seen, until = b"", time.monotonic() + 30
    while time.monotonic() < until:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:
            chunk = b""
        seen += chunk
        if not chunk or (wanted and wanted in seen):
            break
    assert wanted in seen
    return seen
