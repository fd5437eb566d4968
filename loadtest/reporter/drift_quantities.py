"""What may drift in a soak, and which rise of it would matter: data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from loadtest.records import SampleSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What may drift, and which rise over the horizon would matter: the first of the four that is known."""

    name: str
    title: str
    unit: Literal["s", "bytes", "count", "ratio", "tokens/s", "/min"]
    source: SampleSource | None = None
    """None: folded from the requests."""
    is_counter: bool = False
    """Its rise in a minute is what is judged."""
    is_worse_lower: bool = False
    """Its fall is judged, by the limits of a rise."""
    capacity_signal: str | None = None
    rise_of_capacity_ratio: float | None = None
    rise_of_start_ratio: float | None = None
    rise: float | None = None
    rise_per_h: float | None = None


QUANTITIES: Final = (
    Quantity(name="ttft", title="TTFT", unit="s", rise_of_start_ratio=0.10),
    Quantity(name="tpot", title="TPOT", unit="s", rise_of_start_ratio=0.10),
    Quantity(
        name="throughput", title="throughput", unit="tokens/s", is_worse_lower=True, rise_of_start_ratio=0.10
    ),
    Quantity(name="errors", title="requests that failed", unit="ratio", rise=0.01),
    Quantity(
        name="preemptions_total", title="preemptions", unit="/min", source="engine", is_counter=True, rise=1.0
    ),
    Quantity(name="waiting", title="waiting requests", unit="count", source="engine", rise=1.0),
    Quantity(
        name="process_resident_memory_bytes",
        title="memory of the server",
        unit="bytes",
        source="engine",
        rise_of_capacity_ratio=0.02,
        rise_of_start_ratio=0.10,  # where nobody said how much memory there is
    ),
    Quantity(
        name="process_open_fds",
        title="file descriptors of the server",
        unit="count",
        source="engine",
        rise=50.0,
    ),
    Quantity(
        name="gpu_memory_used_bytes",
        title="GPU memory",
        unit="bytes",
        source="gpu",
        capacity_signal="gpu_memory_total_bytes",
        rise_of_capacity_ratio=0.02,
        rise_of_start_ratio=0.10,
    ),
    Quantity(name="client_rss_bytes", title="our own memory", unit="bytes", source="client", rise_per_h=20e6),
)
IDLE: Final = Quantity(name="kv_idle", title="KV cache at idle", unit="ratio", source="engine", rise=0.0)
