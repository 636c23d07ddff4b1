"""The HTTP surface over real sockets: routes, waiting, TLS, the addresses it listens on."""

import asyncio
import contextlib
import dataclasses
import json
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from adapters.base import Kind
from sidecar.board import Board
from sidecar.core.answers import is_settled
from sidecar.core.deadlines import Deadlines
from sidecar.core.picker_page import Page
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
from sidecar.core.status_schema import json_schema
from sidecar.http_app import PATHS
from sidecar.server import Server, Tls, bound_port, open_sockets, parse_listen
from sidecar.telemetry import Telemetry


def target(name, state=State.RESIDENT, **fields):
    known: dict[str, Any] = {
        "kind": Kind.LORA,
        "source": "s3://x",
        "desired": True,
        "readiness": "initial",
    }
    return TargetStatus(name=name, state=state, **(known | fields))


def status(*targets, **fields):
    known: dict[str, Any] = {
        "version": "1.0",
        "pod": "pod-a",
        "ready": True,
        "converged": True,
        "reasons": ("all is well",),
        "cycle": "nothing to do",
        "document": DocumentStatus(generation=1),
        "engine": EngineStatus(
            kind="vllm",
            urls=("http://127.0.0.1:8000",),
            state=EngineCondition.UP,
            base_model="base",
            base_names=("base", "alias"),
        ),
        "store": StoreStatus(),
        "targets": {one.name: one for one in targets},
    }
    return Status(**(known | fields))


class Pages:
    def __init__(self):
        self.now = Page(fresh=True, body=b"x 1\n")
        self.later = self.now

    def ask(self):
        return self.now

    async def wait_page(self):
        return self.later

    async def render_all(self):
        return b"everything 1\n"


class Client:
    """One kept-alive connection. Reads answers by content-length, as probes and pickers do."""

    def __init__(self, port, host="127.0.0.1", tls=None):
        self.where = (host, port)
        self.tls = tls

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection(
            *self.where, ssl=self.tls, server_hostname="localhost" if self.tls else None
        )
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await self.writer.wait_closed()

    async def ask(self, path, method="GET", body=b""):
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        async with asyncio.timeout(10):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if line)
            size = 0 if method == "HEAD" else int(headers["content-length"])
            return int(lines[0].split()[1]), headers, await self.reader.readexactly(size)

    async def json(self, path, method="GET", body=b""):
        code, headers, text = await self.ask(path, method, body)
        assert headers["content-type"] == "application/json"
        return code, json.loads(text)


class Bench:
    def __init__(self, port, board, pages, deadlines, server):
        self.port, self.board, self.pages = port, board, pages
        self.deadlines, self.server = deadlines, server

    async def json(self, path, method="GET", body=b""):
        async with Client(self.port) as client:
            return await client.json(path, method, body)

    async def ask(self, path, method="GET", body=b""):
        async with Client(self.port) as client:
            return await client.ask(path, method, body)


@contextlib.asynccontextmanager
async def serving(published=None, *, listen="127.0.0.1:0", tls=None):
    published = published or status(target("sql"))
    board, pages, deadlines = Board(published), Pages(), Deadlines(time.monotonic)
    server = Server(board, pages, Telemetry(lambda: board.status), deadlines, tls=tls)
    sockets = open_sockets(listen)
    task = asyncio.ensure_future(server.serve(sockets))
    try:
        yield Bench(bound_port(sockets), board, pages, deadlines, server)
    finally:
        server.close()
        async with asyncio.timeout(10):
            await task


async def test_ready_says_why():
    async with serving() as bench:
        assert await bench.json("/ready") == (200, {"ready": True, "reasons": ["all is well"]})
        bench.board.publish(status(ready=False, reasons=("the engine does not answer",)))
        expected = {"ready": False, "reasons": ["the engine does not answer"]}
        assert await bench.json("/ready") == (503, expected)


@pytest.mark.parametrize("path", ["/live", "/healthz"])
async def test_live_names_the_task_that_hangs(path):
    async with serving() as bench:
        assert await bench.json(path) == (200, {"live": True})
        bench.deadlines.beat("reconciler", -1.0)
        assert await bench.json(path) == (503, {"live": False, "overdue": ["reconciler"]})


async def test_live_does_not_ask_about_the_engine():
    async with serving(status(ready=False, engine=EngineStatus(kind="x", urls=()))) as bench:
        assert (await bench.json("/live"))[0] == 200


async def test_metrics_is_the_page_or_503_with_the_reason():
    async with serving() as bench, Client(bench.port) as client:
        code, headers, body = await client.ask("/metrics")
        assert (code, body) == (200, b"x 1\n")
        assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        bench.pages.now = Page(fresh=False, body=b"too old\n")
        code, headers, body = await client.ask("/metrics")
        assert (code, body) == (503, b"too old\n")
        assert headers["content-type"].startswith("text/plain;")
        bench.pages.now = None
        assert (await client.ask("/metrics"))[0] == 200


async def test_metrics_is_not_compressed_when_asked():
    async with serving() as bench, Client(bench.port) as client:
        client.writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"content-encoding" not in head.lower()


async def test_answers_are_not_held_back_by_the_network_stack():
    # With Nagle's algorithm on, every answer after the first takes about 40 ms.
    async with serving() as bench, Client(bench.port) as client:
        took = []
        for _ in range(9):
            started = time.perf_counter()
            await client.ask("/metrics")
            took.append(time.perf_counter() - started)
        assert sorted(took)[4] < 0.03


async def test_everything_for_prometheus():
    async with serving() as bench:
        code, _, body = await bench.ask("/metrics/all")
        assert (code, body) == (200, b"everything 1\n")


async def test_status_is_the_published_snapshot():
    async with serving() as bench:
        code, document = await bench.json("/status")
        assert code == 200
        assert document == json.loads(json.dumps(to_json(bench.board.status)))
        assert document["targets"]["sql"]["state"] == "resident"


async def test_one_target_has_its_own_place_whatever_its_name():
    async with serving(status(target("größe 1"))) as bench:
        code, document = await bench.json("/status/gr%C3%B6%C3%9Fe%201")
        assert (code, document["name"]) == (200, "größe 1")
        assert (await bench.json("/status/other"))[0] == 404


async def test_a_new_publication_is_seen_by_the_next_request():
    async with serving() as bench, Client(bench.port) as client:
        for cycle in ("one", "two"):
            bench.board.publish(status(cycle=cycle))
            assert (await client.json("/status"))[1]["cycle"] == cycle


async def test_waiting_answers_when_it_converged():
    async with serving(status(converged=False)) as bench:
        waiting = asyncio.ensure_future(bench.json("/status?wait=converged&timeout=60"))
        bench.board.publish(status(converged=False, cycle="still"))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        bench.board.publish(status(cycle="there"))
        code, document = await waiting
        assert (code, document["converged"], document["cycle"]) == (200, True, "there")


async def test_waiting_ends_with_its_time():
    async with serving(status(converged=False)) as bench:
        code, document = await bench.json("/status?wait=converged&timeout=0.05")
        assert (code, document["converged"]) == (200, False)


async def test_waiting_for_one_target_does_not_wait_for_the_others():
    stuck = target("bad", State.FAILED, reason="FetchFailed", retry_at=5.0)
    loading = status(target("sql", State.LOADING), stuck, converged=False)
    async with serving(loading) as bench:
        waiting = asyncio.ensure_future(bench.json("/status/sql?wait=converged&timeout=60"))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        bench.board.publish(status(target("sql", converged=True), stuck, converged=False))
        assert (await waiting)[1]["state"] == "resident"


async def test_closing_answers_those_who_wait():
    async with serving(status(converged=False)) as bench, Client(bench.port) as client:
        waiting = asyncio.ensure_future(client.json("/status?wait=converged&timeout=600"))
        await asyncio.wait([waiting], timeout=0.1)
        bench.server.close()
        assert (await waiting)[0] == 200


async def test_a_client_that_leaves_is_not_waited_for():
    async with serving(status(converged=False)) as bench:
        await bench.ask("/live")
        before = len(asyncio.all_tasks())
        async with Client(bench.port) as client:
            waiting = asyncio.ensure_future(client.ask("/status?wait=converged&timeout=600"))
            await asyncio.wait([waiting], timeout=0.1)
            waiting.cancel()
        async with asyncio.timeout(5):
            while len(asyncio.all_tasks()) > before:
                await bench.board.wait_changed(0.01)


async def test_a_query_that_makes_no_sense_is_refused():
    refused = {
        "wait=ready": "converged",
        "wait=converged&timeout=x": "number of seconds",
        "wait=converged&timeout=-1": "number of seconds",
        "wait=converged&timeout=601": "600",
        "wait=converged&timeout=nan": "number of seconds",
        "wiat=converged": "wiat",
    }
    async with serving() as bench, Client(bench.port) as client:
        for query, words in refused.items():
            code, document = await client.json(f"/status?{query}")
            assert code == 400
            assert words in document["error"]


async def test_models_are_those_that_are_really_resident():
    published = status(
        target("sql", path="/store/sql/1", since=1763600000.5),
        target("chat", State.FAILED),
        target("ocr", State.ASLEEP),
    )
    async with serving(published) as bench:
        code, document = await bench.json("/v1/models")
        assert (code, document["object"]) == (200, "list")
        assert [one["id"] for one in document["data"]] == ["base", "alias", "sql"]
        base, _, lora = document["data"]
        assert base["parent"] is None
        assert lora == {
            "id": "sql",
            "object": "model",
            "created": 1763600000,
            "owned_by": "model-sidecar",
            "root": "/store/sql/1",
            "parent": "base",
        }


async def test_an_engine_that_is_down_serves_no_base_model():
    down = EngineStatus(kind="v", urls=(), state=EngineCondition.DOWN, base_names=("base",))
    async with serving(status(engine=down)) as bench:
        assert (await bench.json("/v1/models"))[1]["data"] == []
        assert (await bench.json("/v2/models/base/ready"))[0] == 400


async def test_the_repository_index_speaks_triton():
    published = status(
        target("a"),
        target("b", State.FETCHING),
        target("c", State.FAILED, reason="EngineRejected", message="no memory"),
        target("d", State.UNLOADING),
        target("e", State.ABSENT, desired=False),
        engine=EngineStatus(kind="triton", urls=(), state=EngineCondition.UP),
    )
    async with serving(published) as bench:
        for method, body in (("POST", b"{}"), ("POST", b""), ("GET", b"")):
            code, rows = await bench.json("/v2/repository/index", method, body)
            assert code == 200
            assert [(row["name"], row["state"], row["reason"]) for row in rows] == [
                ("a", "READY", ""),
                ("b", "LOADING", "its files are being fetched"),
                ("c", "UNAVAILABLE", "EngineRejected: no memory"),
                ("d", "UNLOADING", "the engine is unloading it"),
                ("e", "UNAVAILABLE", "unloaded"),
            ]
        _, rows = await bench.json("/v2/repository/index", "POST", b'{"ready": true}')
        assert [row["name"] for row in rows] == ["a"]


async def test_an_index_request_that_is_no_object_is_refused():
    async with serving() as bench, Client(bench.port) as client:
        for body in (b"{", b"[]", b"\xff", b"[" * 50000):
            assert (await client.json("/v2/repository/index", "POST", body))[0] == 400


async def test_model_readiness_is_told_by_the_code():
    async with serving(status(target("sql"), target("chat", State.LOADING))) as bench:
        assert (await bench.ask("/v2/models/sql/ready"))[0] == 200
        assert (await bench.ask("/v2/models/alias/ready"))[0] == 200
        assert (await bench.json("/v2/models/chat/ready"))[0] == 400
        assert (await bench.json("/v2/models/none/ready"))[0] == 400


async def test_what_is_not_served_says_what_is():
    async with serving() as bench, Client(bench.port) as client:
        for path in ("/", "/metrics/", "/v2/models//ready", "/v2/models/a", "/status/"):
            code, document = await client.json(path)
            assert code == 404
            assert document["paths"] == list(PATHS)


async def test_nothing_can_be_changed():
    async with serving() as bench, Client(bench.port) as client:
        before = bench.board.status
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            for path in ("/ready", "/live", "/metrics", "/metrics/all", "/status/sql"):
                code, headers, _ = await client.ask(path, method)
                assert (code, headers["allow"]) == (405, "GET, HEAD")
        assert bench.board.status is before


async def test_head_is_get_without_the_body():
    async with serving() as bench, Client(bench.port) as client:
        for path in (path for path in PATHS if "{" not in path):
            code, headers, body = await client.ask(path, "HEAD")
            assert (code, body) == (200, b"")
            full = await client.ask(path)
            assert (full[0], full[1]["content-length"]) == (200, headers["content-length"])


async def test_garbage_on_the_wire_hurts_nobody_else():
    async with serving() as bench:
        async with Client(bench.port) as client:
            client.writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
            assert (await client.reader.readline()).startswith(b"HTTP/1.1 400")
        assert (await bench.json("/ready"))[0] == 200


async def test_a_server_that_is_cancelled_leaves_nothing_behind():
    board = Board(status())
    server = Server(board, Pages(), Telemetry(lambda: board.status), Deadlines(time.monotonic))
    sockets = open_sockets("127.0.0.1:0")
    port = bound_port(sockets)
    task = asyncio.ensure_future(server.serve(sockets))
    async with Client(port) as client:
        await client.ask("/live")
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait([task])
            assert task.cancelled()
            assert await client.reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_the_server_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    async with serving() as bench:
        await bench.ask("/live")
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":9110", ("", 9110)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9110", ("::1", 9110)),
        ("[::]:9110", ("::", 9110)),
    ],
)
def test_listen_addresses(text, expected):
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "9110", "host", "host:", "::1:9110", ":65536", ":x", "[a]:1"])
def test_listen_addresses_that_are_none(text):
    with pytest.raises(ValueError, match="write :9110"):
        parse_listen(text)


def has_ipv6():
    with contextlib.suppress(OSError):
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        return True
    return False


async def test_no_host_means_every_address_of_both_families():
    async with serving(listen=":0") as bench:
        hosts = ["127.0.0.1", "127.0.0.2"] + (["::1"] if has_ipv6() else [])
        for host in hosts:
            async with Client(bench.port, host) as client:
                assert (await client.ask("/live"))[0] == 200


@pytest.mark.parametrize("listen", ["localhost:0", "127.0.0.3:0", "[::1]:0"])
async def test_a_host_is_bound_alone(listen):
    host = parse_listen(listen)[0]
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    async with serving(listen=listen) as bench:
        async with Client(bench.port, host) as client:
            assert (await client.ask("/live"))[0] == 200
        with pytest.raises(ConnectionRefusedError):
            async with Client(bench.port, "127.0.0.9"):
                pass


def test_a_port_that_is_taken_is_said():
    taken = open_sockets("127.0.0.1:0")
    try:
        with pytest.raises(OSError, match="in use"):
            open_sockets(f"127.0.0.1:{bound_port(taken)}")
    finally:
        for one in taken:
            one.close()


def make_pair(folder, name):
    """Write a self-signed certificate for ``localhost`` whose common name is ``name``."""
    cert, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return cert, key


async def common_name(port, cert):
    tls = ssl.create_default_context(cafile=str(cert))
    async with Client(port, tls=tls) as client:
        assert (await client.ask("/ready"))[0] == 200
        subject = client.writer.get_extra_info("peercert")["subject"]
        return dict(pair for part in subject for pair in part)["commonName"]


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@needs_openssl
async def test_tls_follows_its_files_and_survives_a_broken_pair(tmp_path):
    cert, key = make_pair(tmp_path, "first")
    tls = Tls(str(cert), str(key))
    async with serving(tls=tls) as bench:
        assert await common_name(bench.port, cert) == "first"
        assert not tls.reload_changed()
        make_pair(tmp_path, "second")
        assert tls.reload_changed()
        assert await common_name(bench.port, cert) == "second"
        good = cert.read_bytes()
        make_pair(tmp_path, "other")
        other = cert.read_bytes()
        cert.write_bytes(good)  # a certificate and the key of another
        assert not tls.reload_changed()
        assert await common_name(bench.port, cert) == "second"
        key.unlink()
        assert not tls.reload_changed()
        cert.write_bytes(other)
        assert not tls.reload_changed()


@needs_openssl
def test_a_pair_that_is_broken_from_the_start_is_said(tmp_path):
    cert, key = make_pair(tmp_path, "first")
    key.write_text("nothing")
    with pytest.raises(OSError):  # noqa: PT011 - ssl.SSLError is one
        Tls(str(cert), str(key))


@pytest.mark.parametrize(
    ("published", "settled"),
    [
        (status(target("sql", converged=True), converged=False), True),
        (status(target("sql", converged=False), converged=False), False),
        (status(converged=False), False),
        (status(converged=True), True),
    ],
)
def test_one_target_settles_by_itself(published, settled):
    assert is_settled(published, "sql") is settled


def test_the_status_leaves_out_what_is_unknown():
    document: dict[str, Any] = to_json(status(target("sql")))
    assert "slots" not in document["engine"]
    assert "in_slot" not in document["targets"]["sql"]
    assert document["engine"]["state"] == "up"
    assert document["reasons"] == ["all is well"]


def test_the_schema_describes_what_is_sent():
    schema = json_schema()
    shapes = {name: shape for name, shape in schema["$defs"].items() if "properties" in shape}
    full = dataclasses.replace(
        status(
            target("sql", retry_at=1.0, total_bytes=5, in_slot=True),
        ),
        document=DocumentStatus(
            accepted_at=1.0,
            formats=("native",),
            problems=({"where": "a", "what": "b", "hint": ""},),
        ),
        engine=EngineStatus(kind="v", urls=(), started_at=1.0, slots=4),
        store=StoreStatus(max_bytes=5),
    )
    documents: list[dict[str, Any]] = [to_json(full), to_json(status(target("sql")))]
    for document in documents:
        parts = [
            (schema, document),
            (shapes["DocumentStatus"], document["document"]),
            (shapes["EngineStatus"], document["engine"]),
            (shapes["StoreStatus"], document["store"]),
            (shapes["TargetStatus"], document["targets"]["sql"]),
        ]
        for shape, part in parts:
            assert set(shape["required"]) <= part.keys() <= shape["properties"].keys()
    assert "null" not in json.dumps(schema)


def test_the_documented_schema_is_the_one_of_the_code():
    documented = Path(__file__).parent.parent.parent / "docs" / "status.schema.json"
    assert json.loads(documented.read_text()) == json_schema()
