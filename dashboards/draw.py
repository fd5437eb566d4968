"""python dashboards/draw.py --prometheus URL: the boards as pictures, drawn with Grafana's own components.

Asks that Prometheus what the boards would ask over the last --minutes, and draws the answers with @grafana/ui
in a headless Chromium. Needs node, npm and chromium on the PATH; the components (447 MB) come from npm once,
into --node-modules. A picture shows what Grafana's panels make of the JSON; it is not Grafana.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from check import Asker, chosen_values, substituted
from generate import BOARDS, FOLDER

NODE_PACKAGES: Final = (
    *(f"@grafana/{name}@13.2.0" for name in ("ui", "data", "schema", "e2e-selectors", "i18n")),
    "@fontsource/inter@5",
    *("react@19", "react-dom@19", "rxjs@7.8.1", "esbuild@0.28.2"),
)
SOURCE: Final = FOLDER / "pictures" / "panels.jsx"
PAGE: Final = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="panels.css">
<div id="board"></div><script>window.process = {{env: {{}}}}; window.BOARD = {board};</script>
<script src="panels.js"></script>"""
PIXELS_A_ROW: Final = 36
HEADER_PIXELS: Final = 70
WIDTH_PIXELS: Final = 1520
DRAW_MS: Final = 8000
POINTS: Final = 300


def answers(board: Mapping[str, Any], asker: Asker, values: Mapping[str, str], step_s: int) -> dict[int, Any]:
    """Panel id -> for each of its queries the series, as [seconds, value] pairs."""
    return {
        panel["id"]: [
            {
                "refId": target["refId"],
                "legend": target["legendFormat"],
                "series": asker.series(
                    substituted(target["expr"], values), instant=target.get("instant", False), step_s=step_s
                ),
            }
            for target in panel["targets"]
        ]
        for panel in board["panels"]
        if panel["type"] != "row"
    }


def marks(board: Mapping[str, Any], asker: Asker, values: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """An annotation's moments: where its expression begins to be true."""
    for one in board["annotations"]["list"]:
        for series in asker.series(substituted(one["expr"], values), instant=False, step_s=10):
            before_s = 0.0
            for time_s, _ in series["values"]:
                if time_s - before_s > 10:
                    yield {"time_s": time_s, "colour": one["iconColor"]}
                before_s = time_s


def build(node_modules: Path, folder: Path) -> None:
    """panels.js and panels.css, from JSX and Grafana's packages."""
    wanted = (node_modules / package.rpartition("@")[0] for package in NODE_PACKAGES)
    if not all(package.exists() for package in wanted):
        node_modules.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "install", "--legacy-peer-deps", "--ignore-scripts", "--no-audit", *NODE_PACKAGES],
            cwd=node_modules.parent,
            check=True,
        )
    source = node_modules.parent / "panels.jsx"  # packages are looked for beside the source
    shutil.copyfile(SOURCE, source)
    loaders = [f"--loader:.{kind}=dataurl" for kind in ("svg", "png", "ttf", "woff", "woff2")]
    command = [node_modules / ".bin" / "esbuild", source, "--bundle", "--minify", "--jsx=transform", *loaders]
    define = '--define:process.env.NODE_ENV="production"'
    subprocess.run([*command, define, f"--outfile={folder / 'panels.js'}"], check=True)


def draw(page: Path, picture: Path, height: int) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no chromium on the PATH: apt-get install chromium")
    subprocess.run(
        [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--no-first-run", "--disable-background-networking", f"--virtual-time-budget={DRAW_MS}"),
            *(f"--window-size={WIDTH_PIXELS},{height}", f"--screenshot={picture}", page.as_uri()),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    if not picture.is_file():  # the browser says nothing of a folder it cannot write to
        raise SystemExit(f"{picture} was not drawn: is its folder writable?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Easel:
    """What every picture is made with: the built page's folder, where pictures go, light or dark."""

    folder: Path
    out: Path
    mode: str

    def picture(self, file: str, prometheus: str, from_s: float, to_s: float) -> Path:
        """Of one board, over a stretch of time in Unix seconds."""
        asker = Asker(prometheus, from_s, to_s)
        board = json.loads((FOLDER / file).read_text("utf-8"))
        values = chosen_values(board, asker)
        drawn = {
            "board": board,
            "from_s": from_s,
            "to_s": to_s,
            "mode": self.mode,
            "answers": answers(board, asker, values, max(1, round((to_s - from_s) / POINTS))),
            "annotations": list(marks(board, asker, values)),
        }
        page = self.folder / f"{Path(file).stem}.html"
        page.write_text(PAGE.format(board=json.dumps(drawn).replace("</", "<\\/")), "utf-8")
        bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
        picture = self.out / f"board-{Path(file).stem}.png"
        draw(page, picture, bottom * PIXELS_A_ROW + HEADER_PIXELS)
        return picture


@contextmanager
def easel(args: argparse.Namespace) -> Iterator[Easel]:
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        build(args.node_modules, Path(name))
        yield Easel(folder=Path(name), out=args.out.resolve(), mode=args.mode)


def options(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "docs" / "pictures")
    parser.add_argument("--mode", choices=("light", "dark"), default="light")
    kept = Path.home() / ".cache/ullage-panels/node_modules"
    parser.add_argument("--node-modules", type=Path, default=kept)
    return parser


def main() -> int:
    parser = options("The boards of a Prometheus as pictures.")
    parser.add_argument("--prometheus", required=True, help="its address, as http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=10.0, help="how far back the boards look")
    args = parser.parse_args()
    now_s = time.time()
    with easel(args) as ready:
        for file in BOARDS:
            print(ready.picture(file, args.prometheus, now_s - 60 * args.minutes, now_s))
    return 0


if __name__ == "__main__":
    sys.exit(main())
