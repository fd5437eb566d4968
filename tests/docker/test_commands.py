"""Every command line of compose.yaml, the Kubernetes objects and their pages is one that our parsers take."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from deployment import DOCKER, ROOT, compose, manifests, with_defaults

from estimator.twin.command import options_of, parser_of
from loadtest.cli import main

SERVICES: dict[str, dict[str, Any]] = with_defaults(compose()["services"])
OBJECTS = [body for name, body in manifests(DOCKER / "k8s") if name != "kustomization.yaml"]
SETTINGS = next(one["data"] for one in OBJECTS if one["kind"] == "ConfigMap")
PAGES = sorted(ROOT.glob("docs/how-to/d*.md"))
SAID_BY_A_PERSON = {"<id>": "20260101T000000Z-tiny"}
IN_THE_IMAGE = "/opt/ullage/"


def locust_lines() -> Iterator[tuple[str, list[str], Mapping[str, str]]]:
    """Where it stands, its words, and the variables it is given."""
    for name, service in SERVICES.items():
        if service.get("command", [""])[0] == "locust":
            yield f"compose {name}", service["command"], service["environment"]
    for job in (one for one in OBJECTS if one["kind"] == "Job"):
        (container,) = job["spec"]["template"]["spec"]["containers"]
        yield f"k8s {container['name']}", container["args"], SETTINGS if "envFrom" in container else {}


def accepted(words: list[str], variables: Mapping[str, str | None]) -> subprocess.CompletedProcess[str]:
    """Locust reads its options and variables, lists its users and ends."""
    here = [word.replace(IN_THE_IMAGE, f"{ROOT}/loadtest/") for word in words]
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("LOCUST_", "ULLAGE_"))}
    given = {name: text for name, text in variables.items() if text is not None}
    return subprocess.run(
        [sys.executable, "-m", *here, "--list"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**kept, **given, "PYTHONPATH": str(ROOT)},
    )


LOCUST = list(locust_lines())


@pytest.mark.parametrize(
    ("words", "variables"), [line[1:] for line in LOCUST], ids=[line[0] for line in LOCUST]
)
def test_locust_takes_the_line(words: list[str], variables: Mapping[str, str]) -> None:
    done = accepted(words, variables)
    assert done.returncode == 0, done.stderr
    assert "QwenUser" in done.stdout
    assert len(LOCUST) == 4


def test_an_option_or_a_variable_that_locust_does_not_take_is_found() -> None:
    words, variables = LOCUST[0][1:]
    assert accepted([*words, "--exporterport=9099"], variables).returncode != 0
    assert accepted(words, {**variables, "ULLAGE_ENGINE": "tgi"}).returncode != 0


def test_every_variable_of_ours_is_read_somewhere() -> None:
    """A name that nothing reads would be set in vain."""
    named = {name for one in SERVICES.values() for name in one.get("environment") or {}} | SETTINGS.keys()
    source = "".join(path.read_text("utf-8") for path in (ROOT / "loadtest").rglob("*.py"))
    source += (DOCKER / "healthcheck.py").read_text("utf-8")
    ours = {name for name in named if name.startswith("ULLAGE_")}
    assert len(ours) >= 5
    assert not [name for name in ours if f'"{name}"' not in source]


def test_the_twin_takes_its_line() -> None:
    program, command, *words = SERVICES["twin"]["command"]
    assert (program, command) == ("ullage", "twin")
    flags = parser_of().parse_args(words)
    options_of(flags)
    published = SERVICES["twin"]["ports"][0].rpartition(":")[2]
    assert str(flags.port) == published
    assert f":{published}/" in SERVICES["twin"]["environment"]["ULLAGE_HEALTH_URL"]


def ullage_lines() -> Iterator[str]:
    """What follows `run --rm ullage` in the pages, and what stands alone."""
    for page in PAGES:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.splitlines():
                found = re.match(r"(?:docker compose .* run --rm )?(ullage .*?)(?:\s+#.*|\s*\\)?$", line)
                if found:
                    yield found[1]


@pytest.mark.parametrize("line", sorted(set(ullage_lines())))
def test_a_command_of_the_pages_is_one(line: str) -> None:
    for name, example in SAID_BY_A_PERSON.items():
        line = line.replace(name, example)
    _, name, *words = shlex.split(line)
    assert isinstance(main, click.Group)
    command = main.get_command(click.Context(main), name)
    assert command is not None, name
    command.make_context(name, words, resilient_parsing=False).close()


def test_what_waits_for_the_master_is_python() -> None:
    (workers,) = [one for one in OBJECTS if one["metadata"].get("name") == "ullage-workers"]
    (waits,) = workers["spec"]["template"]["spec"]["initContainers"]
    compile(waits["args"][-1], "args", "exec")


def test_files_of_the_image_that_a_line_names_are_copied_there() -> None:
    copied = re.findall(r"^COPY (.+) /opt/ullage/$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    names = {Path(word).name for line in copied for word in line.split()}
    named = {
        found for _, words, _ in LOCUST for found in re.findall(rf"{IN_THE_IMAGE}(\S+)", " ".join(words))
    }
    assert named
    assert named <= names
