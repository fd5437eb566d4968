"""What a soak takes from the run that signed its number, and what the command line says instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_folder import write_run
from fake_run import FakeRun, FakeStage

from loadtest.cli.soak import requested, soak
from loadtest.conductor.signoff import SignoffRequest
from loadtest.telemetry import Telemetry, telemetry_of

BROKEN = FakeStage(users=61, running=40.6, waiting=20.4, kv_usage_ratio=0.99, preemptions=26, e2e_s=7.0)
WATCHED = telemetry_of([], [], "http://127.0.0.1:9090", None)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """24 users are safe."""
    run = FakeRun(stages=(FakeStage(users=24), FakeStage(users=31), BROKEN))
    return write_run(run, tmp_path, "signed", telemetry=WATCHED)


def asked(*words: str | Path) -> SignoffRequest:
    return requested(soak.make_context("soak", ["--hours", "4", *map(str, words)]).params)


def test_the_signed_number_names_the_run_that_signed_it(signed: Path) -> None:
    request = asked("--run", signed)
    assert (request.signed_by, request.scenario.stages[0].users) == ("signed", 24)


def test_a_number_that_a_person_gave_was_signed_by_nobody(signed: Path) -> None:
    assert asked("--run", signed, "--users", "9").signed_by is None


def test_the_signed_runs_server_is_watched_as_it_was(signed: Path) -> None:
    assert asked("--run", signed).telemetry == WATCHED
    assert asked("--run", signed, "--host", "http://127.0.0.1:1").telemetry == Telemetry()


def test_the_flags_of_a_sign_off_say_where_server_and_gpus_are_watched(signed: Path) -> None:
    page = "http://127.0.0.1:9400/metrics"
    assert asked("--run", signed, "--gpu-metrics-url", page).telemetry == telemetry_of([], [page], None, None)
