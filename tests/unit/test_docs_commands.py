"""What the documentation says to type works: commands are parsed, manifests are injected."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from sidecar.cli import build_parser, main
from tests.support.inject import GOLDEN, pods_of

ROOT = Path(__file__).resolve().parents[2]
TASKS = sorted((ROOT / "docs" / "tasks").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *TASKS]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"\A# ([\w.-]+\.yaml)\n")
OPERATORS = frozenset({"|", "||", "&", "&&", ";", ">", ">>", "<", "2>"})
FROM_THE_CLUSTER = {"triton.yaml": GOLDEN / "michelangelo-triton.yaml"}
"""What a page fetches with kubectl, in the shape that it has in clusters."""
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
every_task = pytest.mark.parametrize("page", TASKS, ids=lambda page: page.stem)


@dataclass(slots=True)
class Command:
    """One simple command of a shell line."""

    words: list[str] = field(default_factory=list)
    written_to: str = ""

    @property
    def program(self) -> str:
        return self.words[0].rpartition("/")[2] if self.words else ""


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for one, text in found if one == language]


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page that are ours or kubectl's, in their order."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if "model-sidecar" in line or "kubectl" in line:
                yield from (
                    one for one in split(line) if one.program in ("model-sidecar", "kubectl")
                )


def split(line: str) -> Iterator[Command]:
    """The simple commands of one line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    command, redirected = Command(), False
    for word in lexer:
        if redirected:
            command.written_to, redirected = word, False
        elif word in (">", ">>"):
            redirected = True
        elif word in OPERATORS:
            yield command
            command = Command()
        else:
            command.words.append(word)
    yield command


def named_files(page: Path) -> dict[str, str]:
    """Blocks whose first line is a comment with a file's name."""
    found = ((FILE.match(text), text) for text in blocks(page, "yaml"))
    return {match[1]: text for match, text in found if match}


@every_page
def test_every_command_of_ours_is_understood(page):
    for command in commands(page):
        if command.program == "model-sidecar":
            build_parser().parse_args(command.words[1:])


@every_page
def test_manifests_that_kubectl_is_given_are_there(page):
    known = {*named_files(page), *(command.written_to for command in commands(page)), "-"}
    for command in commands(page):
        if command.program != "kubectl":
            continue
        for flag, name in zip(command.words, command.words[1:], strict=False):
            if flag in ("-f", "-k", "--patch-file") and not name.startswith("http"):
                inside = ROOT / name / "kustomization.yaml" if flag == "-k" else ROOT / name
                is_given = inside.exists() if name.startswith("manifests/") else name in known
                assert is_given or page not in TASKS, " ".join(command.words)
                assert is_given or not name.startswith("manifests/"), " ".join(command.words)


@every_page
def test_every_document_of_ours_is_valid(page, tmp_path, capsys):
    for number, text in enumerate(blocks(page, "yaml")):
        values = [one for one in yaml.safe_load_all(text) if isinstance(one, dict)]
        if any(one.get("kind") == "ConfigMap" for one in values):
            path = tmp_path / f"{number}.yaml"
        elif any("models" in one for one in values):
            path = tmp_path / "models.yaml"
        else:
            continue
        path.write_text(text)
        assert main(["validate", str(path)]) == 0, capsys.readouterr().out


@every_task
def test_what_a_task_does_with_files_works(page, tmp_path, capsys):
    for name, text in named_files(page).items():
        (tmp_path / name).write_text(text)
    with contextlib.chdir(tmp_path):
        injected = list(inject_and_validate(page, capsys))
    assert injected
    for text in injected:
        agents = [
            one["args"]
            for pod in pods_of(text)
            for one in pod["spec"].get("initContainers", ())
            if one["name"] == "model-sidecar"
        ]
        assert agents


def inject_and_validate(page: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """Run those commands that need no cluster; give what `inject` writes."""
    for command in commands(page):
        if command.program == "kubectl" and command.written_to in FROM_THE_CLUSTER:
            shutil.copy(FROM_THE_CLUSTER[command.written_to], command.written_to)
        if command.program != "model-sidecar" or command.words[1] not in ("inject", "validate"):
            continue
        code = main(command.words[1:])
        out, err = capsys.readouterr()
        assert code == 0, (command.words, out, err)
        if command.words[1] == "inject":
            yield out


def test_the_documentation_has_commands_of_each_kind():
    seen = {one.words[1] for page in PAGES for one in commands(page) if one.program != "kubectl"}
    assert seen >= {"models", "inject", "validate", "status", "run"}


def test_a_line_is_split_into_its_commands():
    line = "a/model-sidecar inject -f x.yaml --image 'r/m s' > y.yaml && kubectl apply -f - # so"
    first, second = split(line)
    assert (first.program, first.written_to) == ("model-sidecar", "y.yaml")
    assert first.words[1:] == ["inject", "-f", "x.yaml", "--image", "r/m s"]
    assert second.words == ["kubectl", "apply", "-f", "-"]
