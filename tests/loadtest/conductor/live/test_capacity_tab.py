"""The Capacity tab, asked as Locust's page asks it: in a process of its own, since Locust patches it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[4]
BEGINNING = """
import csv, io, json, sys
from pathlib import Path
from locust.argument_parser import get_parser
from locust.env import Environment
from locust.web import WebUI
from fake_run import FakeRun, FakeStage
from replay import Replay
from loadtest.conductor.live.capacity_tab import add_capacity_tab

BASE, MODEL = sys.argv[2], "=cmd|' /C calc'!A0</script><script>alert(1)</script>"
replay = Replay(FakeRun(stages=(FakeStage(users=20), FakeStage(users=50, preemptions=30)), model=MODEL),
                Path(sys.argv[1]))
environment = Environment(parsed_options=get_parser().parse_args([]))
runner = environment.create_local_runner()
web_ui = WebUI(environment, "127.0.0.1", 0, web_base_path=BASE or None, delayed_start=True)
add_capacity_tab(web_ui, replay.standing, BASE or None)
client = web_ui.app.test_client()

def rows():
    (table,) = client.get(f"{BASE}/stats/requests").get_json()["extended_stats"]
    assert table["key"] == "capacity"
    return {row["what"].replace("\\xa0", " "): row for row in table["data"]}

def table(name):
    answer = client.get(f"{BASE}/capacity/{name}")
    assert (answer.status_code, answer.mimetype) == (200, "text/csv"), answer
    return list(csv.reader(io.StringIO(answer.text)))
"""
CLAIMS = {
    "the page is told of the tab, its table and both files": """
page = client.get(f"{BASE}/").text
for words in ('"title": "Capacity"', '"href": "./capacity/capacity.csv"', '"href": "./capacity/levels.csv"'):
    assert words in page, words
""",
    "before a run there is one row": """
assert list(rows()) == ["Verdict so far"]
assert len(table("capacity.csv")) == 2
""",
    "each poll shows how the run stands by then, though Locust keeps its own answer for a while": """
replay.play(seconds=40)
assert rows()["Verdict so far"]["figure"] == "\\u2713\\xa020\\xa0users\\xa0hold"
replay.play(seconds=100)
assert rows()["Verdict so far"]["figure"].startswith("\\u2717\\xa050")
""",
    "locust's own figures stay as they are": """
told = client.get(f"{BASE}/stats/requests").get_json()
assert {"stats", "errors", "state", "user_count"} <= told.keys()
assert "extended_stats" not in client.get(f"{BASE}/exceptions").get_json()
""",
    "a hostile model name is no formula, no script and no line of its own": """
replay.play(seconds=40)
assert "</script><script>" not in client.get(f"{BASE}/").text
assert client.get(f"{BASE}/stats/requests").mimetype == "application/json"
lines = table("capacity.csv")
assert all(len(line) == 3 for line in lines)
assert not any(cell.startswith(("=", "+", "-", "@")) for line in lines for cell in line)
""",
    "levels come one a line": """
replay.play()
head, *levels = table("levels.csv")
assert [dict(zip(head, level))["users"] for level in levels] == ["20", "50"]
""",
    "who has not logged in sees nothing": """
web_ui.web_login = True
from flask_login import LoginManager, UserMixin
web_ui.app.secret_key = "s"
manager = LoginManager(web_ui.app)
manager.user_loader(lambda name: None)
for path in ("stats/requests", "capacity/capacity.csv", "capacity/levels.csv"):
    answer = client.get(f"{BASE}/{path}")
    assert "20 users" not in answer.text and "Verdict" not in answer.text, answer.text
""",
}


DRIVER = """
import json, sys, traceback
faults = {}
for claim, (script, home) in json.load(sys.stdin).items():
    sys.argv[1] = home
    try:
        exec(script, {})
    except Exception:
        faults[claim] = traceback.format_exc()
print(json.dumps(faults))
"""


@pytest.mark.parametrize("base", ["", "/locust"])
def test_the_tab_on_locusts_page(tmp_path: Path, base: str) -> None:
    asked = {}
    for number, (claim, script) in enumerate(CLAIMS.items()):
        (home := tmp_path / str(number)).mkdir()
        asked[claim] = (BEGINNING + script, str(home))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "", base],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests' / 'support'}"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}
