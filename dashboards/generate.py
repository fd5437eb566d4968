"""python dashboards/generate.py: writes the boards as JSON; with --check it only says which are stale.

Boards on which two lines look alike are not written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import capacity
import fleet
import gpu
import soak
from colours import troubles
from grafana import board_json

FOLDER: Final = Path(__file__).parent
BOARDS: Final = {
    "soak.json": soak.BOARD,
    "capacity.json": capacity.BOARD,
    "fleet.json": fleet.BOARD,
    "gpu.json": gpu.BOARD,
}


def texts() -> Mapping[Path, str]:
    """The file of every board, and what belongs in it."""
    return {
        FOLDER / name: json.dumps(board_json(board), indent=2, sort_keys=True) + "\n"
        for name, board in BOARDS.items()
    }


def main() -> int:
    found = [trouble for board in BOARDS.values() for trouble in troubles(board)]
    if found:
        print("\n".join(found), file=sys.stderr)
        return 1
    stale = [path for path, text in texts().items() if not path.is_file() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} is stale: run python dashboards/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(texts()[path], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
