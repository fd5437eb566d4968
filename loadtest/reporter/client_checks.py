"""What the report shows of the load generator: seen beside allowed."""

from __future__ import annotations

from loadtest.reporter.client_health import CPU_RATIO, GC_PAUSE_S, LOOP_LAG_S, SEND_LATENESS_S
from loadtest.reporter.innocence import PARKED_RATIO
from loadtest.reporter.observation import Observation
from loadtest.reporter.plain import shown


def checks(observation: Observation) -> list[dict[str, str]]:
    """Can the load generator be trusted? What was seen beside what is allowed."""
    health = observation.client
    return [
        {
            "name": "send lateness p99",
            "seen": shown(_ms(health.send_lateness_p99_s), "{:.1f} ms"),
            "allowed": f"{SEND_LATENESS_S * 1000:g} ms",
            "meaning": "from the intent to send to the last byte written, connecting excluded",
        },
        {
            "name": "event-loop lag",
            "seen": shown(_ms(health.loop_lag_s), "{:.1f} ms"),
            "allowed": f"{LOOP_LAG_S * 1000:g} ms",
            "meaning": "median over the seconds of each second's worst",
        },
        {
            "name": "garbage collection",
            "seen": shown(_ms(health.gc_pause_s), "{:.1f} ms"),
            "allowed": f"{GC_PAUSE_S * 1000:g} ms",
            "meaning": _of_garbage(health.gc_total_s),
        },
        {
            "name": "CPU of a worker",
            "seen": shown(health.cpu_max_ratio, "{:.0%}"),
            "allowed": f"{CPU_RATIO:.0%}",
            "meaning": "of one core in the busiest second; the median is what is judged",
        },
        {
            "name": "time the hypervisor took",
            "seen": shown(health.steal_ratio, "{:.1%}"),
            "allowed": "not judged",
            "meaning": _at_worst("of its machine's processor time", health.steal_max_ratio),
        },
        {
            "name": "time without a processor",
            "seen": shown(health.cpu_wait_ratio, "{:.1%}"),
            "allowed": "not judged",
            "meaning": _at_worst("a thread was ready and others had them all", health.cpu_wait_max_ratio),
        },
        {
            "name": "requests the server does not count",
            "seen": shown(health.parked_ratio, "{:.1%}"),
            "allowed": f"{PARKED_RATIO:.0%}",
            "meaning": "in flight at the client, neither running nor waiting in the engine",
        },
    ]


def _of_garbage(total_s: float | None) -> str:
    meaning = "the longest at once, in processor time"
    return meaning if total_s is None else f"{meaning}; {total_s * 1000:.0f} ms in the whole run"


def _at_worst(meaning: str, worst_ratio: float | None) -> str:
    meaning = f"{meaning}; what it does to the load is judged above"
    return meaning if worst_ratio is None else f"{meaning}; {worst_ratio:.0%} in the worst second"


def _ms(duration_s: float | None) -> float | None:
    return None if duration_s is None else duration_s * 1000
