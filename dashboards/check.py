"""python dashboards/check.py: asks a real Prometheus everything the boards ask, as Grafana would.

Fails on an error, an empty answer or a NaN, in panels, variables and annotations; on a rule that cannot be
evaluated; and when the limits vanish with the load test that found them. Takes about a minute.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from generate import BOARDS, FOLDER
from scene import Scene, live, load

IDLE_S: Final = 6.0
"""Before the load, so that a board's first minutes are looked at too."""
LOADED: Final = (
    "sum(rate(llm_loadtest_request_ttft_seconds_count[20s])) > 0",
    "sum(rate(lmdeploy:generation_tokens_total[20s])) > 0",
)
CHANGED: Final = (
    "max(changes(llm_loadtest_step_index[30s])) > 0",
    "max(engine:llm_server_restarts:count1h) > 0",
)
STEP_S: Final = 5
PATIENCE_S: Final = 40.0
BUILT_IN: Final = {"__rate_interval": "20s", "__interval": "5s", "__range": "60s"}
VARIABLE: Final = re.compile(r"\$\{?(\w+)\}?")
LABEL_VALUES: Final = re.compile(r"label_values\((.*), (\w+)\)", re.DOTALL)
NOTHING: Final = "nothing"
SPECIAL: Final = re.compile(r"([\\.+*?()|{}\[\]^$])")


class Asker:
    """One Prometheus, over the stretch of time a board would show."""

    def __init__(self, prometheus: str, from_s: float, to_s: float) -> None:
        self._prometheus = prometheus
        self._from_s, self._to_s = from_s, to_s

    def get(self, path: str, **query: str | float) -> Mapping[str, Any]:
        address = f"{self._prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                body: Mapping[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:  # its body says what is wrong with the expression
            body = json.load(error)
        return body

    def series(self, expr: str, *, instant: bool, step_s: int = STEP_S) -> Sequence[Mapping[str, Any]]:
        """Labels, "metric", and [seconds, value] pairs, "values", of each; ValueError: what is wrong."""
        if instant:
            answer = self.get("query", query=expr, time=self._to_s)
        else:
            answer = self.get("query_range", query=expr, start=self._from_s, end=self._to_s, step=step_s)
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        found: Sequence[Mapping[str, Any]] = answer["data"]["result"]
        if answer["data"]["resultType"] == "scalar":
            found = [{"metric": {}, "value": found}]
        return [{"metric": one["metric"], "values": one.get("values") or [one["value"]]} for one in found]

    def trouble(self, expr: str, *, instant: bool) -> str:
        """What is wrong with the answer; "" for nothing."""
        try:
            series = self.series(expr, instant=instant)
        except ValueError as error:
            return str(error)
        values = [float(value) for one in series for _, value in one["values"]]
        if not values:
            return "no data"
        return "NaN" if any(map(math.isnan, values)) else ""

    def label_values(self, selector: str, label: str) -> Sequence[str]:
        values: Sequence[str] = self.get(f"label/{label}/values", **{"match[]": selector})["data"]
        return values


def substituted(text: str, values: Mapping[str, str]) -> str:
    return VARIABLE.sub(lambda match: values.get(match[1], match[0]), text)


def all_of(values: Sequence[str]) -> str:
    """How Grafana writes "All" into a matcher: every value it knows, escaped, and not `.*`."""
    escaped = [SPECIAL.sub(r"\\\\\1", value) for value in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def chosen_values(board: Mapping[str, Any], asker: Asker) -> dict[str, str]:
    """What each variable stands for when all its values are chosen; "nothing" for one that has none."""
    chosen: dict[str, str] = dict(BUILT_IN)
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            match = LABEL_VALUES.fullmatch(substituted(variable["query"]["query"], chosen))
            values = asker.label_values(match[1], match[2]) if match else ()
            chosen[variable["name"]] = all_of(values or [NOTHING])
    return chosen


def board_troubles(board: Mapping[str, Any], asker: Asker) -> Iterator[str]:
    """One line for each question of this board that has no proper answer."""
    chosen = chosen_values(board, asker)
    yield from (f"variable {name}: no values" for name, value in chosen.items() if value == NOTHING)
    for one in board["annotations"]["list"]:
        trouble = asker.trouble(substituted(one["expr"], chosen), instant=False)
        if trouble:
            yield f"annotation {one['name']}: {trouble}"
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            expr = substituted(target["expr"], chosen)
            trouble = asker.trouble(expr, instant=target.get("instant", False))
            if trouble:
                yield f"panel {panel['title']} {target['refId']}: {trouble}: {expr}"


def rule_troubles(asker: Asker) -> Iterator[str]:
    for group in asker.get("rules")["data"]["groups"]:
        for rule in group["rules"]:
            if rule["health"] == "err":
                yield f"rule {rule['name']}: {rule['lastError']}"


def limits_that_vanish(scene: Scene) -> Iterator[str]:
    """Ends the load test, and looks again when the last of its own figures is gone."""
    scene.end_load_tests()
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if shows("llm_loadtest_safe_limit_concurrency", scene):
            break
        time.sleep(0.5)
    ended_s = time.time()
    time.sleep(2 * STEP_S)  # the rules are evaluated every 5 s
    now = Asker(scene.prometheus, ended_s, time.time())
    for name in ("safe_limit", "observed_max", "predicted_max"):
        expr = f"timestamp(model:llm_{name}:requests) > {ended_s}"
        if now.trouble(expr, instant=True):
            yield f"the line of {name} ends with its load test"


def shows(expr: str, scene: Scene) -> str:
    """What is wrong with the answer now; "" for nothing."""
    now_s = time.time()
    return Asker(scene.prometheus, now_s, now_s).trouble(expr, instant=True)


async def play(scene: Scene) -> None:
    """Nothing, then load, and a restart of the other server in the midst of it; no longer than it takes."""
    await asyncio.sleep(IDLE_S)
    scene.begin_load_test()
    loading = asyncio.create_task(load(scene))
    for expr in LOADED:
        await shown(expr, scene)
    await asyncio.to_thread(scene.restart, "lmdeploy")
    for expr in (*LOADED, *CHANGED):
        await shown(expr, scene)
    await asyncio.sleep(2 * STEP_S)  # the last rules are evaluated, and a rate has its points
    loading.cancel()


async def shown(expr: str, scene: Scene) -> None:
    """Waits until it has an answer; what never has one, the boards will name."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and await asyncio.to_thread(shows, expr, scene):
        await asyncio.sleep(0.5)


def main() -> int:
    if shutil.which("prometheus") is None:
        print("no prometheus on the PATH: apt-get install prometheus", file=sys.stderr)
        return 2
    troubles: list[str] = []
    asked = 0
    with tempfile.TemporaryDirectory() as folder, live(Path(folder)) as scene:
        asyncio.run(play(scene))
        asker = Asker(scene.prometheus, scene.began_s, time.time())
        for name in BOARDS:
            board = json.loads((FOLDER / name).read_text("utf-8"))
            asked += sum(len(panel.get("targets", ())) for panel in board["panels"])
            troubles += [f"{name}: {trouble}" for trouble in board_troubles(board, asker)]
        troubles += rule_troubles(asker)
        troubles += limits_that_vanish(scene)
    print("\n".join(troubles) or f"{len(BOARDS)} boards, {asked} queries: every one has an answer")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
