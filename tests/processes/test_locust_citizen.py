"""Every Locust way to run a load is a way to run ours: files, variables, pages, pickers, masters and tags."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from locust_process import REPOSITORY, answers_of, run_of, start_locust, wait_for
from token_server import TokenServer, token_server

from loadtest.conductor.processes import free_port
from loadtest.records import RequestRecord
from loadtest.results import load_results
from loadtest.run_folder import RunFolder

SCENARIO = """
name: short
input_tokens: {kind: constant, tokens: 8}
output_tokens: {kind: constant, tokens: 2}
settle_s: 0.5
spawn_rate_per_s: 100
stages: [{users: 4, hold_s: 2}]
"""
LONG_ANSWERS = SCENARIO.replace("tokens: 2", "tokens: 3").replace("name: short", "name: other")
TWO_CLASSES = """
from locust import events

from loadtest.conductor.hooks import install
from loadtest.conductor.ramp import ScenarioRamp
from loadtest.workers.chat_user import ChatUser

install(events, engine="vllm")


class Asker(ChatUser):
    weight = 3


class Tuned(ChatUser):
    model = "lora"
    scenario = "other.yaml"


class Ramp(ScenarioRamp):
    pass
"""
TAGGED = """
from pathlib import Path

from locust import events, tag, task

from loadtest.conductor.hooks import install
from loadtest.workers.chat_user import ChatUser

install(events, engine="vllm")


class Custom(ChatUser):
    @tag("load")
    @task
    def ask(self):
        super().ask()

    @task
    def untagged(self):
        Path("untagged").touch()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[TokenServer]:
    with token_server(("m", "lora")) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "short.yaml").write_text(SCENARIO)
    (tmp_path / "other.yaml").write_text(LONG_ANSWERS)
    (tmp_path / "two.py").write_text(TWO_CLASSES)
    (tmp_path / "tagged.py").write_text(TAGGED)
    return tmp_path


OURS = ("--scenario", "short.yaml", "--runs-dir", "runs", "--model", "m")


def drive(home: Path, *options: str, **how: object) -> tuple[RunFolder, list[RequestRecord]]:
    process = start_locust(home, options, **how)  # type: ignore[arg-type]
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in output + errors
    folder, rows = run_of(home)
    return folder, list(rows.requests)


def by_name(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(newline="") as file:
        return {(row["Type"], row["Name"]): row for row in csv.DictReader(file)}


def near(shown: str, true_ms: float) -> bool:
    """Within Locust's rounding: to the millisecond, from 100 ms on to two digits and less of them above."""
    return float(shown) == pytest.approx(true_ms, rel=0.05, abs=1.0)


def test_locusts_table_tells_what_the_rows_tell(home: Path, server: TokenServer) -> None:
    options = ("--headless", "--only-summary", "--csv", "out/table", "--html", "out/page.html")
    _, rows = drive(home, *OURS, *options, "--host", server.url)
    table = by_name(home / "out/table_stats.csv")
    told = [row for row in rows if row.outcome != "client_cancel"]
    for kind, times_s in {
        "POST": sorted(row.e2e_s for row in told),
        "TTFT": sorted(row.ttft_s for row in told if row.ttft_s is not None),
    }.items():
        line = table[kind, "completions"]
        assert int(line["Request Count"]) == len(times_s) == len(told)
        assert int(line["Failure Count"]) == 0
        assert float(line["Average Response Time"]) == pytest.approx(
            1000 * sum(times_s) / len(times_s), abs=1
        )
        assert near(line["Min Response Time"], 1000 * times_s[0])
        assert near(line["Max Response Time"], 1000 * times_s[-1])
        assert near(line["Median Response Time"], 1000 * times_s[(len(times_s) - 1) // 2])
    assert (home / "out/page.html").stat().st_size > 0


def test_a_failure_is_in_the_table_as_in_the_rows(home: Path, server: TokenServer) -> None:
    too_short = SCENARIO + "timeouts: {total_s: 0.1}\n"
    (home / "short.yaml").write_text(too_short)
    process = start_locust(home, [*OURS, "--headless", "--only-summary", "--csv", "t", "--host", server.url])
    process.communicate(timeout=60)
    _, rows = run_of(home)
    line = by_name(home / "t_stats.csv")["POST", "completions"]
    outcomes = Counter(row.outcome for row in rows.requests)
    assert int(line["Failure Count"]) == int(line["Request Count"]) == outcomes["deadline"] > 0
    with (home / "t_failures.csv").open(newline="") as file:
        (failure,) = csv.DictReader(file)
    assert "deadline" in failure["Error"]
    assert process.returncode == 1, "Locust's own code for failed requests"


def test_a_configuration_file_and_variables_do_what_options_do(home: Path, server: TokenServer) -> None:
    (home / "locust.conf").write_text(
        f"headless = true\nhost = {server.url}\nscenario = short.yaml\nusers = 3\n"
        "goodput = [ttft:900, e2el:5000]\n"
    )
    environ = {
        "LOCUST_RUN_TIME": "2s",
        "LOCUST_SPAWN_RATE": "50",
        "ULLAGE_MODEL": "m",
        "ULLAGE_MAX_PREEMPTIONS": "2.5",
    }
    folder, rows = drive(home, environ=environ)
    scenario = folder.read_manifest().scenario
    assert scenario["name"] == "short"
    asked = {"ttft_s": 0.9, "e2e_s": 5.0, "preemptions_max_per_100_requests": 2.5}
    assert asked.items() <= scenario["limits"].items()
    assert len(rows) > 3
    (stage,) = [event for event in load_results(folder).events if event.event == "stage"]
    assert (stage.data["users"], stage.data["hold_s"]) == (3, 2)


def test_our_options_stand_in_one_group_of_the_help(home: Path) -> None:
    """Locust answers --help before it reads a locustfile, so its parser is asked as the guide says."""
    ask = "import loadtest.qwen; from locust.argument_parser import get_parser; get_parser().print_help()"
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    _, ours = done.stdout.split("\nUllage:", 1)
    for option in ("--scenario", "--model", "--engine", "--runs-dir", "--load", "--goodput", "--insecure"):
        assert option in ours


def test_two_classes_ask_two_models_and_every_row_says_which(home: Path, server: TokenServer) -> None:
    options = ("--headless", "--only-summary", "--csv", "t", "-u", "4", "-t", "2s", "--host", server.url)
    _, rows = drive(home, *OURS, *options, locustfile=home / "two.py")
    asked = {(row.model, row.planned_output_tokens) for row in rows}
    assert asked == {("m", 2), ("lora", 3)}
    table = by_name(home / "t_stats.csv")
    counts = Counter(row.model for row in rows if row.outcome == "ok")
    assert int(table["POST", "completions"]["Request Count"]) == counts["m"]
    assert int(table["POST", "completions lora"]["Request Count"]) == counts["lora"]
    assert counts["m"] > counts["lora"], "three users of four"
    assert {body["model"] for _, body in server.asked} == {"m", "lora"}


def test_a_class_that_asks_for_an_unknown_model_stops_before_the_load(home: Path) -> None:
    with token_server(("m",)) as server:
        process = start_locust(home, [*OURS, "--headless", "--host", server.url], locustfile=home / "two.py")
        _, errors = process.communicate(timeout=60)
    (told,) = [line for line in errors.splitlines() if line.startswith("ullage: ")]
    assert "does not serve 'lora'" in told
    assert process.returncode == 2
    assert not server.asked


def test_classes_of_two_hosts_stop_before_the_load_and_the_fix_is_named(
    home: Path, server: TokenServer
) -> None:
    text = TWO_CLASSES.replace("    weight = 3", f"    weight = 3; host = {server.url!r}")
    text = text.replace('    model = "lora"', '    model = "lora"; host = "http://127.0.0.1:9"')
    (home / "hosts.py").write_text(text)
    asked_before = len(server.asked)
    process = start_locust(home, [*OURS, "--headless"], locustfile=home / "hosts.py")
    _, errors = process.communicate(timeout=60)
    (told,) = [line for line in errors.splitlines() if line.startswith("ullage: ")]
    assert "one run loads one server: give --host for all of them, or make a run for each host" in told
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert len(server.asked) == asked_before


def test_tags_choose_among_the_tasks(home: Path, server: TokenServer) -> None:
    options = ("--headless", "--only-summary", "--tags", "load", "-u", "2", "-t", "2s", "--host", server.url)
    _, rows = drive(home, *OURS, *options, locustfile=home / "tagged.py")
    assert {row.outcome for row in rows} <= {"ok", "client_cancel"}
    assert len(rows) > 2
    assert not (home / "untagged").exists(), "only the tagged task was run"


class Page:
    """Locust's web page, as a browser uses it."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def is_up(self) -> bool:
        try:
            self.get("/")
        except OSError:
            return False
        return True

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._url + path, timeout=60) as answer:
            return bytes(answer.read())

    def post(self, path: str) -> None:
        with urllib.request.urlopen(self._url + path, b"", timeout=60) as answer:
            answer.read()

    def swarm(self, fields: Mapping[str, str | Sequence[str]]) -> bool:
        body = urllib.parse.urlencode(fields, doseq=True).encode()
        with urllib.request.urlopen(f"{self._url}/swarm", body, timeout=60) as answer:
            return bool(json.loads(answer.read())["success"])

    def is_stopped(self) -> bool:
        return bool(json.loads(self.get("/stats/requests"))["state"] == "stopped")


def ended_runs(home: Path) -> list[RunFolder]:
    folders = [RunFolder.open(root) for root in sorted((home / "runs").iterdir())]
    return [folder for folder in folders if folder.read_manifest().state != "running"]


def close(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return errors


def test_the_page_starts_picks_stops_and_starts_again(home: Path, server: TokenServer) -> None:
    port = free_port()
    options = ("--class-picker", "--web-host", "127.0.0.1", "--web-port", str(port), "--host", server.url)
    process = start_locust(home, [*OURS, *options], locustfile=home / "two.py")
    page = Page(port)
    try:
        wait_for(page.is_up, process)
        form = {"user_count": "3", "spawn_rate": "50", "host": server.url, "user_classes": ["Tuned"]}
        assert page.swarm(form)
        wait_for(lambda: answers_of(home) > 0, process)
        page.post("/stop")
        wait_for(page.is_stopped, process)
        wait_for(lambda: len(ended_runs(home)) == 1, process)
        assert page.swarm({**form, "user_classes": ["Asker"], "shape_class": "Ramp"})
        wait_for(lambda: answers_of(home) > 0, process)
        page.post("/stop")
        wait_for(lambda: len(ended_runs(home)) == 2, process)
        errors = close(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    first, second = (load_results(folder) for folder in ended_runs(home))
    assert {row.model for row in first.requests} == {"lora"}
    assert {row.model for row in second.requests} == {"m"}
    assert "Traceback" not in errors


def test_autostart_and_autoquit_run_the_stages_under_the_page(home: Path, server: TokenServer) -> None:
    options = ("--autostart", "--autoquit", "0", "--web-host", "127.0.0.1", "--web-port", str(free_port()))
    folder, rows = drive(home, *OURS, *options, "--host", server.url)
    assert folder.read_manifest().state == "complete"
    assert {row.outcome for row in rows} == {"ok"}


def test_a_master_and_workers_that_were_started_apart_share_one_run(home: Path, server: TokenServer) -> None:
    port = str(free_port())
    bind = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2")
    master = start_locust(home, [*OURS, "--headless", "--master", *bind, "--host", server.url])
    workers = [
        start_locust(home, ["--worker", "--master-host", "127.0.0.1", "--master-port", port])
        for _ in range(2)
    ]
    _, errors = master.communicate(timeout=90)
    codes = [worker.wait(timeout=60) for worker in workers]
    for worker in workers:
        worker.communicate()
    folder, rows = run_of(home)
    assert (master.returncode, codes, folder.read_manifest().state) == (0, [0, 0], "complete"), errors
    assert {row.worker for row in rows.requests} == {0, 1}
    assert {row.outcome for row in rows.requests} == {"ok"}
