"""Cores that do not halt, for what is measured on a virtual machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LATENCY_WISH: Final = Path("/dev/cpu_dma_latency")
"""Linux keeps to the wake-up latency written here, in microseconds, while the file is open. Root may."""


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Idle cores poll instead of halting: a busy host lets a core that halted wait for its turn.

    Where that may not be asked for, nothing changes.
    """
    with contextlib.ExitStack() as kept:
        with contextlib.suppress(OSError):
            wish = kept.enter_context(LATENCY_WISH.open("wb", buffering=0))
            wish.write((0).to_bytes(4, "little"))
        yield
