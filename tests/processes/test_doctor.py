"""`ullage doctor` and what it guards, with real parts: the twin, TLS before it, Locust, the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from certificates import self_signed, tls_door

import loadtest
from loadtest.conductor.audit.host_audit import LoadPlan
from loadtest.conductor.audit.host_facts import PROBE_S, PROBES
from loadtest.conductor.audit.preflight import audit_host
from loadtest.conductor.signoff import running_twin
from loadtest.results import load_results
from loadtest.run_folder import RunFolder

QWEN = Path(loadtest.__file__).parent / "qwen.py"
CANARY = "sk-CANARY-0123456789"
OF_THE_NEIGHBOURS = {"timers"}
"""Red where others have the processors of this machine: then the doctor is right to say so."""
SCENARIO = """
name: doctored
input_tokens: {kind: constant, tokens: 64}
output_tokens: {kind: constant, tokens: 16}
settle_s: 0.5
spawn_rate_per_s: 50
stages: [{users: 8, hold_s: 7}]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    exit_code: int
    out: str
    err: str


def ullage(*words: object, **environ: str) -> Said:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "COLUMNS": "110", "NO_COLOR": "1", **environ},
    )
    return Said(exit_code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture(scope="module")
def twin() -> Iterator[str]:
    with running_twin("tiny") as host:
        yield host


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def door(twin: str, certificate: tuple[Path, Path]) -> Iterator[str]:
    with tls_door(int(twin.rpartition(":")[2]), *certificate) as url:
        yield url


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture(scope="module")
def examined(twin: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the doctor says of a twin that is well."""
    path = tmp_path_factory.mktemp("doctor") / "scenario.yaml"
    path.write_text(SCENARIO)
    said = ullage("doctor", "--host", twin, "--scenario", path, "--json", OPENAI_API_KEY=CANARY)
    assert CANARY not in said.out + said.err
    found: dict[str, Any] = json.loads(said.out)
    red = {check["name"] for check in (*found["client"], *found["server"]) if check["level"] == "red"}
    assert red <= OF_THE_NEIGHBOURS, said.out + said.err
    assert said.exit_code == found["exit_code"] == (2 if red else 0)
    return found


def test_a_server_that_is_well_has_nothing_red_or_amber(examined: dict[str, Any]) -> None:
    levels = {check["name"]: check["level"] for check in examined["server"]}
    assert list(levels) == [
        *("server", "server at rest", "plan", "answer"),
        *("protocol", "stream", "buffering", "lengths", "keep-alive"),
    ]
    assert set(levels.values()) <= {"ok", "skipped"}, examined["server"]


def test_the_twin_closes_idle_connections_when_vllm_does(examined: dict[str, Any]) -> None:
    (check,) = [one for one in examined["server"] if one["name"] == "keep-alive"]
    assert check["figures"]["closed_within_s"] in (5.0, 6.0)


def test_the_reader_is_tried_and_its_figure_told(examined: dict[str, Any]) -> None:
    (echo,) = [check for check in examined["client"] if check["name"] == "echo"]
    figures = echo["figures"]
    assert figures["planned_chunks_per_s"] == 8 * 50
    assert "streams of 16 tokens at 50/s" in echo["said"]
    assert figures["chunks_per_cpu_s"] > figures["planned_chunks_per_s"]
    assert figures["chunks_per_read"] < 1.5, "a real server's chunks come one by one"
    assert figures["echo_s"] >= 1.9


def test_stolen_time_is_counted_until_the_reader_was_tried() -> None:
    start_s, looked_s = time.monotonic(), []

    def stolen_ratio() -> float:
        looked_s.append(time.monotonic() - start_s)
        return 0.3

    checks = audit_host(LoadPlan(users=8), 0.3, stolen_ratio)
    assert [check.figures["echo_s"] >= 0.3 for check in checks if check.name == "echo"] == [True]
    assert [check.said[:3] for check in checks if check.name == "steal"] == ["30%"]
    (at_s,) = looked_s
    assert at_s >= PROBES * PROBE_S + 0.3


def test_a_person_reads_a_table() -> None:
    said = ullage("doctor", "--users", 200)
    first, *rows, _, last = said.out.splitlines()
    red = {row[2:].split("  ")[0] for row in rows if " RED " in row}
    assert red <= OF_THE_NEIGHBOURS, said.out
    assert said.exit_code == (2 if red else 0)
    assert first == "This machine, for 200 users at 50 tokens/s each"
    assert [row.split("  ")[1] for row in rows if row.startswith("  ") and row[2] != " "] == [
        *("file descriptors", "ports", "clock", "processors", "load", "steal", "timers", "memory", "echo")
    ]
    assert last.startswith(f"{len(red)} red" if red else "fit")


def test_a_server_that_is_not_there_is_exit_3() -> None:
    said = ullage("doctor", "--host", "http://127.0.0.1:9")
    assert said.exit_code == 3
    assert "cannot reach http://127.0.0.1:9" in " ".join(said.out.split())


def test_a_public_host_is_not_even_asked_without_consent(scenario: Path, tmp_path: Path) -> None:
    for command in (
        ("doctor", "--host", "http://8.8.8.8"),
        ("signoff", "--host", "http://8.8.8.8", "--scenario", scenario, "--runs-dir", tmp_path / "runs"),
        ("calibrate", "--host", "http://8.8.8.8"),
    ):
        said = ullage(*command)
        assert said.exit_code == 2
        assert "8.8.8.8 is a public host (8.8.8.8)" in said.err
        assert "--allow-public-host" in said.err
    assert not (tmp_path / "runs").exists()


def test_more_users_than_the_cap_are_refused(twin: str, scenario: Path, tmp_path: Path) -> None:
    words = ("signoff", "--host", twin, "--scenario", scenario, "--runs-dir", tmp_path / "runs")
    said = ullage(*words, ULLAGE_USERS_CAP="7")
    assert said.exit_code == 2
    assert "8 users at once are above the cap of 7" in said.err
    assert not (tmp_path / "runs").exists()


def locust(host: str, home: Path, *words: object) -> Said:
    command = [sys.executable, "-m", "locust", "-f", QWEN, "--headless", "--host", host, "-r", "50"]
    done = subprocess.run(
        [*map(str, command), "--runs-dir", str(home / "runs"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=home,
    )
    return Said(exit_code=done.returncode, out=done.stdout, err=done.stderr)


def test_locust_looks_before_it_loads(twin: str, tmp_path: Path) -> None:
    said = locust(twin, tmp_path, "-u", 4, "-t", "2s")
    assert said.exit_code == 0, said.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert {"ports", "echo", "answer", "lengths"} <= {
        check.name for check in RunFolder.open(folder).read_manifest().audit
    }


def test_locust_keeps_to_the_cap(twin: str, tmp_path: Path) -> None:
    said = locust(twin, tmp_path, "-u", 9, "-t", "2s", "--users-cap", 8)
    assert said.exit_code == 2
    assert "9 users at once are above the cap of 8" in said.err
    assert not (tmp_path / "runs").exists()


def test_a_certificate_that_nobody_signed_is_refused(door: str, scenario: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    said = ullage("signoff", "--host", door, "--scenario", scenario, "--runs-dir", runs)
    assert said.exit_code == 3
    assert "cannot verify the TLS certificate" in said.err
    assert "--ca-file" in said.err
    assert not runs.exists()


def signed(door: str, scenario: Path, runs: Path, *words: object, **environ: str) -> tuple[Said, RunFolder]:
    said = ullage("signoff", "--host", door, "--scenario", scenario, "--runs-dir", runs, *words, **environ)
    (folder,) = runs.iterdir()
    return said, RunFolder.open(folder)


def reported(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.report_path("json").read_text(encoding="utf-8"))
    return found


def test_a_named_ca_is_believed_by_every_process_of_a_run(
    door: str, certificate: tuple[Path, Path], scenario: Path, tmp_path: Path
) -> None:
    said, folder = signed(
        door, scenario, tmp_path / "runs", "--ca-file", certificate[1], OPENAI_API_KEY=CANARY
    )
    report = reported(folder)
    assert report["observation"]["outcomes"].keys() == {"ok"}, said.err
    looks = [sample for sample in load_results(folder).samples if sample.source == "engine"]
    assert [sample.gap for sample in looks if sample.signals], "the collector reached the server too"
    assert not report["is_unverified"]
    assert not any("who answered" in unknown for unknown in report["observation"]["unknowns"])
    manifest = folder.read_manifest()
    assert {"echo", "answer", "TLS"} <= {check.name for check in manifest.audit}
    assert "--insecure" not in said.err
    written = [path for path in folder.root.rglob("*") if path.is_file()]
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]


def test_an_unverified_server_is_loaded_but_never_signed_off(
    door: str, scenario: Path, tmp_path: Path
) -> None:
    said, folder = signed(door, scenario, tmp_path / "runs", "--insecure", "--no-audit")
    report = reported(folder)
    assert report["observation"]["outcomes"].keys() == {"ok"}, said.err
    # on a machine that is too busy to load anything it is VOID, which signs nothing off either
    assert (said.exit_code, report["status"]) in ((4, "INCONCLUSIVE"), (5, "VOID"))
    assert "who answered" in report["observation"]["unknowns"][0]
    assert "WARNING: --insecure" in said.err
    assert folder.read_manifest().access.insecure
    for suffix in ("md", "html"):
        assert "NOT VERIFIED" in folder.report_path(suffix).read_text(encoding="utf-8")
