"""When a server that still answers has stopped generating, the load ends; it does not ask for hours. Pure."""

from __future__ import annotations

from loadtest.scenario import Timeouts


class Watchdog:
    """Barks when requests wait and none has received a token for longer than any one of them may wait.

    A single request that stalls is a row; all of them together are a server that hangs. A time without
    requests is no silence.
    """

    def __init__(self, limits: Timeouts, now_ns: int) -> None:
        self._silence_s = max(limits.first_token_s, limits.between_tokens_s)
        self._heard_ns = now_ns

    def look(self, now_ns: int, in_flight: int, last_token_ns: int | None) -> str | None:
        """Why the load should stop, one sentence; None while all is well."""
        if in_flight == 0:
            self._heard_ns = now_ns
        if last_token_ns is not None:
            self._heard_ns = max(self._heard_ns, last_token_ns)
        silent_s = (now_ns - self._heard_ns) / 1e9
        if silent_s <= self._silence_s:
            return None
        return (
            f"the server generated nothing for {silent_s:.0f} s while {in_flight} requests waited: "
            "it hangs, so the load was stopped"
        )
