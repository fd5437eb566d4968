"""What a load does before its first request, and no more than that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LATER = (
    "numpy",
    "estimator.memory",
    "estimator.twin.arrivals",
    "loadtest.conductor.audit.preflight",
    "loadtest.conductor.far.outposts",
    "loadtest.conductor.search",
)
"""What only a report, a prediction from a model, an open loop, an audit, a crew and a search need."""
WHO_CALLED = """
from locust import runners
from loadtest.conductor.prepaid import prepay

def asked_as_a_runner_does():
    return runners.inspect.getframeinfo(runners.inspect.stack()[1][0])

def who_stops():
    return asked_as_a_runner_does()

prepay()
print(who_stops().function, who_stops().lineno, who_stops().code_context)
"""


def printed(*arguments: str) -> str:
    """By a process of its own: Locust patches the one that imports it."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_locustfile_imports_nothing_that_only_some_loads_need() -> None:
    program = f"import sys, loadtest.qwen; print([name for name in {LATER} if name in sys.modules])"
    assert printed("-c", program) == "[]"


def test_a_runner_learns_who_stopped_it_without_reading_any_source(tmp_path: Path) -> None:
    program = tmp_path / "stopped.py"
    program.write_text(WHO_CALLED)
    assert printed(str(program)) == "who_stops 9 None"
