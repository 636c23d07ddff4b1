"""The command line: exit codes, help, and what a start costs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from sidecar import __version__
from sidecar.cli import build_parser, main, plan_fields
from sidecar.flags import flags
from sidecar.settings import Settings

COMMANDS = ("run", "plan", "validate", "status", "models", "inject", "webhook", "version")
OPERATIONS = ("list", "create", "delete", "exists", "add", "remove")
HEAVY = (
    "httpcore",
    "kubernetes",
    "tritonclient",
    "pydantic",
    "rich",
    "uvicorn",
    "prometheus_client",
)


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment() | environment,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("MODEL_SIDECAR_")}


def usage_error(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize("argv", [(), ("nonsense",), ("version", "--loud"), ("run", "--engin=x")])
def test_command_line_that_cannot_be_read_is_bad_usage(argv, capsys):
    first, second = usage_error(capsys, *argv).splitlines()
    assert first.startswith("model-sidecar")
    assert second.startswith("Try: model-sidecar")


def test_flags_that_do_not_fit_together_are_bad_usage_and_say_what_to_do(capsys):
    said = usage_error(capsys, "run", "--engine", "vllm").splitlines()
    assert said[0] == (
        "model-sidecar run: say where the document is: exactly one of --config-dir, "
        "--config-file, --configmap"
    )
    assert said[1] == "Try: model-sidecar run --help"


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("flag", "value"),
    [("--engine", "vlm"), ("--max-loras", "0"), ("--prune", "some"), ("--store-max-bytes", "x")],
)
def test_wrong_value_is_bad_usage_and_names_the_flag(command, flag, value, tmp_path, capsys):
    said = usage_error(capsys, command, "--config-dir", str(tmp_path), flag, value)
    assert said.startswith(f"model-sidecar {command}: {flag}: ")


def test_wrong_variable_is_bad_usage_and_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MODEL_SIDECAR_RESYNC_SECONDS", "never")
    said = usage_error(capsys, "run", "--config-dir", str(tmp_path))
    assert "MODEL_SIDECAR_RESYNC_SECONDS: 'never'" in said


def test_address_that_is_taken_is_bad_usage(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = usage_error(
            capsys, "run", "--config-dir", str(tmp_path), "--listen", f"127.0.0.1:{port}"
        )
    assert "--listen" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"model-sidecar {command}" in capsys.readouterr().out


@pytest.mark.parametrize("operation", OPERATIONS)
def test_help_of_every_operation_on_a_configmap(operation, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["models", operation, "--help"])
    assert caught.value.code == 0
    assert f"model-sidecar models {operation}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("models",), "OPERATION"),
        (("models", "list"), "--configmap"),
        (("models", "add", "a", "--configmap=m", "--source=/a", "--wait"), "-l SELECTOR"),
        (("inject",), "-f"),
        (("webhook",), "--tls-cert-file or --self-signed"),
        (("status", "--targets"), "-l"),
        (("status", "--port", "0"), "'0' is no port"),
        (("run", "--config-dir=/c", "--condition=nice"), "--condition"),
    ],
)
def test_command_for_the_cluster_that_cannot_be_read_says_why(argv, says, capsys):
    said = usage_error(capsys, *argv)
    assert says in said
    assert "Try: model-sidecar" in said


def test_help_lists_every_command_with_a_summary():
    text = build_parser().format_help()
    for command in COMMANDS:
        (line,) = (line for line in text.splitlines() if line.strip().startswith(command + " "))
        assert len(line.split()) > 2


def test_plan_takes_no_flag_that_run_lacks():
    assert set(plan_fields()) < set(flags(Settings))
    assert {"engine_url", "config_dir", "store_dir", "prune"} <= set(plan_fields())


def test_version_tells_versions_and_engines(capsys):
    assert main(["version"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"model-sidecar {__version__}"
    assert second.startswith("Python 3.")
    assert third.startswith("engines: vllm, triton")


@pytest.mark.parametrize(
    ("argv", "heavy"),
    [
        (["version"], HEAVY),
        (["status", "--url", "http://127.0.0.1:1"], HEAVY),
        (["inject", "-f", "/dev/null"], HEAVY),
        (["validate", "/dev/null"], tuple(set(HEAVY) - {"pydantic"})),
    ],
)
def test_command_imports_only_what_it_needs(argv, heavy):
    script = (
        "import sys; from sidecar.cli import main\n"
        f"main({argv!r}); print(*(n for n in {heavy!r} if n in sys.modules), file=sys.stderr)"
    )
    ended = run_python("-c", script)
    assert ended.stderr.splitlines()[-1] == ""


def test_module_runs_as_a_program():
    ended = run_python("-m", "sidecar", "version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert __version__ in ended.stdout


def test_reader_that_leaves_a_pipe_is_no_traceback(tmp_path):
    models = "\n".join(f"- name: m{n}\n  sauce: x" for n in range(5000))
    (tmp_path / "models.yaml").write_text(f"models:\n{models}\n")
    command = [sys.executable, "-m", "sidecar", "validate", str(tmp_path / "models.yaml")]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    with writer:
        writer.stdout.readline()
        writer.stdout.close()
        assert writer.stderr.read() == b""
        assert writer.wait(30) == 1


def test_agent_is_asked_for_its_status_and_ends_with_0_when_asked_to_stop(tmp_path, capsys):
    port = free_port()
    command = [sys.executable, "-m", "sidecar", "run", "--listen", f"127.0.0.1:{port}"]
    command += ["--config-dir", str(tmp_path), "--store-dir", str(tmp_path / "store")]
    command += ["--engine-url", "http://127.0.0.1:1"]
    agent = subprocess.Popen(command, stderr=subprocess.PIPE, env=clean_environment())
    with agent:
        try:
            wait_until_served(f"http://127.0.0.1:{port}/status", agent)
            assert main(["status", "--url", f"http://127.0.0.1:{port}"]) == 0
            assert f"document dir {tmp_path}: none accepted" in capsys.readouterr().out
            agent.send_signal(signal.SIGTERM)
            _, logged = agent.communicate(timeout=30)
        finally:
            agent.kill()
    assert agent.returncode == 0, logged.decode()


HANGS = """
import sys, threading
from sidecar.cli import main
threading.Thread(target=threading.Event().wait).start()
sys.exit(main(sys.argv[1:]))
"""


def test_an_agent_with_a_thread_that_hangs_ends_with_0_when_asked_to_stop(tmp_path):
    port = free_port()
    command = [sys.executable, "-c", HANGS, "run", "--listen", f"127.0.0.1:{port}"]
    command += ["--config-dir", str(tmp_path), "--store-dir", str(tmp_path / "store")]
    command += ["--engine-url", "http://127.0.0.1:1"]
    agent = subprocess.Popen(command, stderr=subprocess.PIPE, env=clean_environment())
    with agent:
        try:
            wait_until_served(f"http://127.0.0.1:{port}/status", agent)
            agent.send_signal(signal.SIGTERM)
            _, logged = agent.communicate(timeout=15)
        finally:
            agent.kill()
    assert agent.returncode == 0, logged.decode()
    assert logged.decode().rstrip().endswith("stopped")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def wait_until_served(url: str, agent: subprocess.Popen[bytes]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + 30
    while time.monotonic() < until and agent.poll() is None:
        try:
            with opener.open(url, timeout=5) as answer:
                assert "targets" in json.load(answer)
                return
        except OSError:
            time.sleep(0.02)
    pytest.fail(f"the agent did not serve {url}")


def test_no_command_reads_the_environment_by_itself():
    commands = Path(__file__).parents[2] / "sidecar" / "commands"
    texts = {one.name: one.read_text() for one in commands.glob("*.py")}
    assert texts
    assert not [name for name, text in texts.items() if "os.environ" in text]
