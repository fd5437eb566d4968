"""One request as it will be sent, and who says what comes next: all that a user knows of the workload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from loadtest.made_often import made_often
from loadtest.scenario import Endpoint


@made_often
class Ask:
    """One request, complete but for its HTTP head. What is planned of it goes into its row."""

    endpoint: Endpoint
    model: str
    """The name that `body` asks for: the served model, or one of its adapters."""
    body: Mapping[str, Any]
    """The JSON body, whole."""
    input_tokens: int
    """Tokens of the prompt as the server shall count them, its template included."""
    output_tokens: int
    """Tokens the answer is limited to."""
    session: int | None = None
    """`seq` of the conversation's first request; None where requests stand alone."""
    turn: int = 0
    """How many requests of its conversation went before it."""
    think_s: float = 0.0
    """How long a user waits before sending it, seconds after the answer before."""


class Asker(Protocol):
    """The workload of one load process, made once the server's tokenizer is known: no clock, no socket."""

    @property
    def keeps_text(self) -> bool:
        """True where the next request of a conversation repeats the answer before: its text must be kept."""

    def first(self, seq: int) -> Ask:
        """A request that stands alone or opens a conversation; the same for the same seed, worker and seq."""

    def following(self, ask: Ask, seq: int, answer: str) -> Ask | None:
        """What the same user asks next; None when the conversation is over."""
