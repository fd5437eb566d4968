"""python dashboards/photograph.py: the pictures of docs/pictures, of a sign-off and a short soak on a twin.

A real load test, first the stages of a scenario and then a soak of its signed number with dips, beside a
twin of LMDeploy; the GPUs' figures alone are made up. Takes ten minutes on a machine with nothing else to
do: on a busy one nothing is signed. Needs what draw.py needs, and Prometheus.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from check import Asker, shows
from draw import Easel, easel, options
from generate import FOLDER
from scene import Scene, live, load

SCENARIO: Final = FOLDER.parent / "configs/scenarios/qwen-chat.yaml"
SIGNED: Final = "llm_loadtest_safe_limit_concurrency > 0"
SIGNED_S: Final = 300.0
SOAK_S: Final = 300.0
AFTER_S: Final = 12.0
"""The rules have repeated what a load test said last."""
TICK_S: Final = 30
PAST_TICK_S: Final = 20
"""A picture ends so long after a tick of its time axis, whose label would be cut off at the edge."""


async def sign(scene: Scene) -> None:
    """The stages of a scenario, until they are over and the run is signed."""
    scene.begin_load_test(SCENARIO)
    until = time.monotonic() + SIGNED_S
    while await asyncio.to_thread(shows, SIGNED, scene):
        if time.monotonic() > until:
            raise SystemExit("nothing was signed: is the machine busy?")
        await asyncio.sleep(2.0)
    await asyncio.sleep(AFTER_S)
    await between_ticks()


async def soak(scene: Scene) -> None:
    """The signed number, held with dips."""
    scene.end_load_tests()
    now_s = time.time()
    (limit,) = Asker(scene.prometheus, now_s, now_s).series("model:llm_safe_limit:requests", instant=True)
    users = round(float(limit["values"][0][1]))
    hours = str(SOAK_S / 3600)
    scene.begin_load_test(SCENARIO, "--load", "soak", "-u", str(users), "--soak-hours", hours)
    await asyncio.sleep(SOAK_S)
    await between_ticks()


async def between_ticks() -> None:
    await asyncio.sleep((PAST_TICK_S - time.time()) % TICK_S)


async def play(scene: Scene, ready: Easel) -> None:
    """Each board at the moment it is made for."""
    loading = asyncio.create_task(load(scene))
    await sign(scene)
    now_s = time.time()
    for file in ("capacity.json", "fleet.json", "gpu.json"):
        print(ready.picture(file, scene.prometheus, scene.began_s, now_s))
    began_s = time.time()
    await soak(scene)
    print(ready.picture("soak.json", scene.prometheus, began_s, time.time()))
    loading.cancel()


def main() -> int:
    args = options("Pictures of a sign-off and a short soak on a twin.").parse_args()
    with (
        easel(args) as ready,
        tempfile.TemporaryDirectory() as folder,
        live(Path(folder), shows_signed=False) as scene,
    ):
        asyncio.run(play(scene, ready))
    return 0


if __name__ == "__main__":
    sys.exit(main())
