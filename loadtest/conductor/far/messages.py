"""What master and workers say to each other because they may be on two machines; the rest is in crew.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

MEET: Final = "ullage-meet"
"""To a worker: a path; answered with MET."""
MET: Final = "ullage-met"
PING: Final = "ullage-ping"
"""To a worker: when it was sent; answered with PONG, at once."""
PONG: Final = "ullage-pong"
KEPT: Final = "ullage-kept"
"""From a worker: where on its machine it writes its rows."""
ASK: Final = "ullage-ask"
"""To a worker whose rows are whole: answered with PARCELS, once they are sealed."""
PARCELS: Final = "ullage-parcels"
FETCH: Final = "ullage-fetch"
"""To a worker: a name and a first byte; answered with PIECE."""
PIECE: Final = "ullage-piece"
TAKEN: Final = "ullage-taken"
"""To a worker: everything arrived, and its own copy may go."""


TEXT_MAX: Final = 500


def plain(text: object) -> str:
    """What a machine said, fit for a terminal and a report: anybody may reach a master's port."""
    return "".join(letter for letter in str(text)[:TEXT_MAX] if letter.isprintable())


class Post(Protocol):
    """What carries the messages: Locust's runner, of a master or of a worker."""

    def register_message(
        self, msg_type: str, listener: Callable[..., None], concurrent: bool = False
    ) -> None:
        """Calls `listener` with every such message that comes."""

    def send_message(
        self, msg_type: str, data: dict[str, Any] | None = None, client_id: str | None = None
    ) -> None:
        """A master names the worker it is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """What a worker on another machine opens a run with; it rides on the message that opens one."""

    run_id: str
    manifest: str
    """The text of the file."""
    clock_ahead_ns: int
    """What its clock shows less what the master's shows."""

    def message(self) -> dict[str, Any]:
        return asdict(self)


def stay_of(message: Mapping[str, Any]) -> Stay:
    return Stay(
        run_id=str(message["run_id"]),
        manifest=str(message["manifest"]),
        clock_ahead_ns=int(message["clock_ahead_ns"]),
    )
