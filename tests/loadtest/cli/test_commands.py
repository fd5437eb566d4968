"""What a person meets first: help, and one sentence with the right exit code when something is wrong."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIO = Path(__file__).parents[3] / "configs/scenarios/qwen-chat.yaml"


def ullage(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest.cli", *words], capture_output=True, text=True, cwd=cwd, timeout=60
    )


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_help_names_every_command(tmp_path: Path) -> None:
    done = ullage("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in ("estimate", "twin", "signoff", "soak", "report"):
        assert command in done.stdout
        assert ullage(command, "--help", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (["report", "nowhere"], 2, "nowhere is not a run folder"),
        (["signoff", "--scenario", "nowhere.yaml"], 2, "cannot read nowhere.yaml"),
        (["signoff", "--scenario", "wrong.yaml"], 2, "unknown key 'stagse'; did you mean 'stages'?"),
        (["signoff", "--scenario", SCENARIO, "--host", "example"], 2, "must look like http://"),
        (["signoff", "--scenario", SCENARIO, "--host", "http://u:p@h"], 2, "must not carry a user"),
        (["signoff", "--scenario", SCENARIO, "--host", "http://127.0.0.1:PORT"], 3, "cannot reach"),
        (["signoff", "--scenario", SCENARIO, "--gpu", "l4-24gb"], 2, "give both --model-config and --gpu"),
        (["signoff", "--scenario", SCENARIO, "--max-minutes", "3"], 2, "add --search"),
        (["signoff", "--scenario", "agent", "--search"], 2, "leave session.think_s out"),
        (["signoff", "--scenario", "no-twin.yaml"], 2, "give --host, or name a `twin`"),
        (["twin", "--profile", "nowhere"], 2, "nowhere"),
        (["estimate", "Qwen3-8B", "--gpu", "h100-80bg"], 2, "h100-80gb"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_left_behind(
    words: list[str | Path], exit_code: int, sentence: str, tmp_path: Path
) -> None:
    body = SCENARIO.read_text(encoding="utf-8")
    (tmp_path / "wrong.yaml").write_text(body.replace("stages:", "stagse:"))
    (tmp_path / "no-twin.yaml").write_text(body.replace("twin: tiny", ""))
    before = sorted(tmp_path.iterdir())
    spoken = [str(word).replace("PORT", str(a_free_port())) for word in words]
    done = ullage(*spoken, cwd=tmp_path)
    assert done.returncode == exit_code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert sorted(tmp_path.iterdir()) == before
