"""Lines for a shell: which words an engine gets, and which lines are not understood."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cluster.inject import InjectError, NoEngineError, Options, inject_pod
from sidecar.cluster.inject.asked import parse_settings
from sidecar.cluster.inject.shell import MAX_CHARS, ShellError, simple_commands

Json = dict[str, Any]
OPTIONS = Options(configmap="models")
SERVE = "vllm serve m/m --enable-lora"


def pod(command: list[str], *, image: str = "ours:1", env: Json | None = None, **said: Any) -> Json:
    variables = [{"name": name, "value": value} for name, value in (env or {}).items()]
    engine = {"name": "engine", "image": image, "command": command, "env": variables}
    annotations = {f"model-sidecar.io/{name}": value for name, value in said.items()}
    return {"metadata": {"annotations": annotations}, "spec": {"containers": [engine]}}


def url(value: Json) -> str:
    agent = inject_pod(value, OPTIONS).pod["spec"]["initContainers"][-1]
    (found,) = parse_settings(agent["args"][1:]).engine_url
    return found.rpartition(":")[2]


def refused(value: Json) -> str:
    with pytest.raises(InjectError) as caught:
        inject_pod(value, OPTIONS)
    assert not isinstance(caught.value, NoEngineError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "port"),
    [
        (f"{SERVE} $EXTRA", "8123"),
        (f"{SERVE} --port $PORT", "8200"),
        (f'{SERVE} --port "${{PORT}}"', "8200"),
        (f"{SERVE} --port 8300 # --port 9000, it's no more", "8300"),
        (f"{SERVE} --root-path=a#b --port 8301", "8301"),
        (f"{SERVE} --port 8302 2>&1 | tee /tmp/log", "8302"),
        (f"({SERVE} --port 8303) | tee /tmp/log", "8303"),
        (f"{SERVE} --port 8304 > >(tee log) &", "8304"),
        (f"cat > /a <<'EOF'\nit's text\nEOF\n{SERVE} --port 8305", "8305"),
        (f'echo "$(date "+%s")"; {SERVE} --port 8306', "8306"),
        (f"{SERVE} --po\\\nrt 8307", "8307"),
        (f"echo $'it\\'s' `date`; {SERVE} --port 8308", "8308"),
    ],
)
def test_an_engine_gets_the_words_that_the_shell_makes(line, port):
    assert url(pod(["sh", "-c", line], env={"EXTRA": " --port 8123 ", "PORT": "8200"})) == port


def test_what_single_quotes_hold_is_no_variable():
    line = f"{SERVE} --port '$PORT'"
    assert "its port is '$PORT'" in refused(pod(["sh", "-c", line], env={"PORT": "8200"}))


@pytest.mark.parametrize("word", ['"$@"', "$@", '"${@}"', "$1 $2"])
def test_the_arguments_of_a_line_are_the_words_behind_it(word):
    assert url(pod(["sh", "-c", f"exec {SERVE} {word}", "sh", "--port", "8500"])) == "8500"


@pytest.mark.parametrize(
    "line",
    [
        f"{SERVE} $EXTRA",
        f'{SERVE} "${{ARGS[@]}}"',
        f"{SERVE} $(cat flags)",
        f'set -- --port 9; {SERVE} "$@"',
        f"PORT=$((PORT + 1)); {SERVE} $PORT",
        f"export PORT=9000\n{SERVE} $PORT",
    ],
)
def test_words_that_the_manifest_does_not_say_are_asked_for(line):
    env = {"PORT": "8200"}
    assert "is not said in the manifest" in refused(pod(["bash", "-c", line], env=env))
    said: Json = {"flags": "--engine-url=http://127.0.0.1:7000"}
    assert url(pod(["bash", "-c", line], env=env, **said)) == "7000"


def test_the_one_word_of_a_flag_is_not_asked_for():
    assert url(pod(["sh", "-c", f"{SERVE} --served-model-name $NAME"])) == "8000"


def test_two_ways_to_start_an_engine_are_asked_for():
    line = f"if a; then {SERVE} --port 1; else {SERVE} --port 2; fi"
    assert "in 2 ways" in refused(pod(["sh", "-c", line]))
    said: Json = {"engine": "vllm", "flags": "--engine-url=http://127.0.0.1:7000"}
    assert url(pod(["sh", "-c", line], **said)) == "7000"


@pytest.mark.parametrize("line", ["echo it's", 'echo "', "echo $(", "echo ${a", "`", "a" * 70_000])
def test_a_line_that_cannot_be_read_is_no_engines_unless_it_is_named(line):
    with pytest.raises(NoEngineError):
        inject_pod(pod(["sh", "-c", line]), OPTIONS)
    assert "cannot be read" in refused(pod(["sh", "-c", line], container="engine"))
    assert "cannot be read" in refused(pod(["sh", "-c", line], image="vllm/vllm-openai:v1"))
    both: Json = {"container": "engine", "engine": "vllm"}
    assert "its command line is not known" in refused(pod(["sh", "-c", line], **both))


def test_a_line_that_cannot_be_read_beside_an_engine_is_left_alone():
    value = pod(["sh", "-c", f"{SERVE} --port 8100"])
    other = {"name": "other", "image": "other:1", "command": ["sh", "-c", "echo it's"]}
    value["spec"]["containers"].insert(0, other)
    assert url(value) == "8100"


@pytest.mark.parametrize(
    "command",
    [
        ["/bin/bash", "-euo", "pipefail", "-c"],
        ["bash", "-o", "pipefail", "-c"],
        ["bash", "-c", "-e"],
        ["bash", "--norc", "--rcfile", "x", "-lc", "--"],
        ["sh", "+x", "-c"],
    ],
)
def test_the_options_of_a_shell_are_not_its_line(command):
    assert url(pod([*command, f"{SERVE} --port 8600"])) == "8600"


@given(st.text(alphabet="ab $'\"\\`(){}<>;&|#\n@*-=0", max_size=60))
def test_whatever_the_line_is_it_is_read_or_refused(line):
    try:
        commands = simple_commands(line)
    except ShellError:
        return
    assert all(commands)


@pytest.mark.parametrize(
    "part", ["a", "'", '"', "\\a", "$(", '"$(', "${", "`", "$A", " a", "<<a\n"]
)
def test_long_lines_take_no_long_time(part):
    line = (part * MAX_CHARS)[:MAX_CHARS]
    begun = time.process_time()
    with contextlib.suppress(ShellError):
        simple_commands(line)
    assert time.process_time() - begun < 5


def test_values_of_values_do_not_grow_without_end():
    env = {"V0": "x" * 1000}
    env |= {f"V{at}": f"$(V{at - 1})" * 10 for at in range(1, 20)}
    assert url(pod(["sh", "-c", f"{SERVE} --served-model-name $V19 --port 1"], env=env)) == "1"
