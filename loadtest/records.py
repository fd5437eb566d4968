"""The two rows everything else is a fold of: RequestRecord (one request) and Sample (one look at a server).

Times are CLOCK_MONOTONIC nanoseconds (`time.perf_counter_ns`), which all processes of one machine share;
the manifest ties them to the wall clock once. A value that was not seen is None or absent, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from loadtest.made_often import made_often

ROW_SCHEMA: Final = 1
ERROR_BYTES_MAX: Final = 500

Outcome = Literal[
    "ok",
    "short_eos",
    "http_4xx",
    "http_429",
    "http_503_admission",
    "http_5xx",
    "stream_error",
    "aborted",
    "truncated",
    "bad_payload",
    "stall_ttft",
    "stall_gap",
    "deadline",
    "connect_refused",
    "connect_timeout",
    "reset_reused",
    "reset_fresh",
    "reset_midstream",
    "tls",
    "dns",
    "client_fd",
    "client_ports",
    "client_cancel",
    "client_lost",
]
"""The closed set: every request that was issued ends in exactly one of these."""

SUCCESSES: Final[frozenset[str]] = frozenset({"ok", "short_eos"})


@made_often
class RequestIssued:
    """Written before a request is sent, so that a killed worker cannot make it disappear."""

    worker: int
    seq: int
    endpoint: str
    planned_input_tokens: int
    planned_output_tokens: int
    intended_ns: int
    model: str | None = None
    session: int | None = None
    turn: int = 0


@made_often
class RequestRecord:
    """One request from intent to end; written once, when it ended, also when it failed.

    `intended_ns` is when the user decided to send, or when the arrival was due; `sent_ns` when the last
    request byte was written; `first_token_ns` the read that carried the first token of any channel. `chunks`
    counts events that carry tokens; `output_tokens` comes from the server's usage. Gap figures are between
    chunks.
    """

    worker: int
    seq: int
    outcome: Outcome
    endpoint: str
    planned_input_tokens: int
    planned_output_tokens: int
    intended_ns: int
    connected_ns: int | None = None
    sent_ns: int | None = None
    headers_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    done_ns: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    first_chunk_tokens: int = 1
    chunks: int = 0
    coalesced_reads: int = 0
    """Reads that carried more than one token event: many of them mean a late client or a buffering proxy."""
    gap_p50_s: float | None = None
    gap_p99_s: float | None = None
    gap_max_s: float | None = None
    finish_reason: str | None = None
    http_status: int | None = None
    reused_connection: bool = False
    retried: bool = False
    error: str | None = None
    error_type: str | None = None
    """Name of the error's class where the client saw it; None where the server's answer was the fault."""
    error_number: int | None = None
    """errno of the system's error, if there was one."""
    model: str | None = None
    """What the request asked for: the served model or an adapter; None in rows older than this field."""
    session: int | None = None
    """`seq` of the conversation's first request; None where requests stand alone."""
    turn: int = 0
    """How many requests of its conversation went before it."""
    free_ns: int | None = None
    """Open loop: since when the user was free that took the arrival; None in a closed loop."""
    first_output_ns: int | None = None
    """The read that carried the first token of the answer proper, where reasoning came before it."""

    @property
    def succeeded(self) -> bool:
        return self.outcome in SUCCESSES

    @property
    def ttft_s(self) -> float | None:
        """Intended send to first token, seconds; None when no token came."""
        return None if self.first_token_ns is None else (self.first_token_ns - self.intended_ns) / 1e9

    @property
    def e2e_s(self) -> float:
        """Intended send to the end of the request, seconds."""
        return (self.done_ns - self.intended_ns) / 1e9

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first chunk: (last - first) / (n - n_first)."""
        if self.first_token_ns is None or self.last_token_ns is None or self.output_tokens is None:
            return None
        later_tokens = self.output_tokens - self.first_chunk_tokens
        return (self.last_token_ns - self.first_token_ns) / 1e9 / later_tokens if later_tokens > 0 else None

    @property
    def send_lateness_s(self) -> float | None:
        """How late the client itself was, seconds: last byte written, after intent, free user, connection."""
        if self.sent_ns is None:
            return None
        ready_ns = max(self.intended_ns, self.connected_ns or 0, self.free_ns or 0)
        return (self.sent_ns - ready_ns) / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamCounts:
    """Gaps between chunks, counted, of requests that succeeded and were intended in one second of the clock.

    Rows of the same second add up. `gap_slots` counts gaps by slot (stream_counts.slot_of), `chunks` token
    events by the second they came in; JSON has only words as keys.
    """

    worker: int
    second: int
    gaps: int
    gap_sum_ns: int
    gap_sum_squares_ns2: int
    gap_slots: Mapping[str, int]
    chunks: Mapping[str, int]


SampleSource = Literal["engine", "replica", "gpu", "client"]
"""`engine` is the whole server; of one that shows several pages each page is a `replica` too."""

SIGNALS: Final[Mapping[str, str]] = {
    # engine: summed over engines of one server unless said otherwise
    "running": "requests in the running batch",
    "waiting": "requests in the waiting queue, preempted ones included",
    "kv_usage_ratio": "share of usable KV blocks in use, 0..1, the fullest engine",
    "kv_usage_mean_ratio": "the same, mean over engines",
    "engines": "engines (data-parallel ranks) seen behind this target",
    "preemptions_total": "preemptions since the server started",
    "prompt_tokens_total": "prompt tokens computed or reused since start",
    "generation_tokens_total": "tokens generated since start",
    "requests_finished_total": "requests the server counts as finished well since start",
    "prefix_cache_queries_total": "tokens looked up in the prefix cache since start",
    "prefix_cache_hits_total": "tokens found there since start",
    "ttft_seconds_sum": "server's own time to first token, sum, seconds",
    "ttft_seconds_count": "server's own time to first token, count",
    "process_start_time_seconds": "when the server process started, Unix seconds",
    "process_resident_memory_bytes": "resident memory of the server process",
    "process_open_fds": "file descriptors the server process holds open",
    # gpu: one sample a device, the device in labels
    "gpu_memory_used_bytes": "memory in use on the device",
    "gpu_memory_total_bytes": "memory of the device",
    "gpu_utilization_ratio": "share of time a kernel ran, 0..1",
    "gpu_power_watts": "power draw",
    # client: one sample a worker
    "client_users": "Locust users alive in this worker",
    "client_in_flight": "requests of this worker between intent and end",
    "client_due_total": "open loop: arrivals that have come due in this worker since the run began",
    "client_backlog": "open loop: arrivals that are due and that no user was free to take yet",
    "client_unsent_total": "open loop: arrivals that no user was free to take before their stage ended",
    "client_cpu_ratio": "CPU of this worker, 1.0 is one core",
    "client_loop_lag_max_s": "worst lateness of a 50 ms timer since the last sample, seconds",
    "client_gc_pause_max_s": "longest garbage collection since the last sample, seconds of processor time",
    "client_gc_total_s": "garbage collections of this run together, seconds of processor time",
    "client_rss_bytes": "resident memory of this worker",
    "client_steal_ratio": "share of its machine's processor time that the hypervisor gave to others, 0..1",
    "client_cpu_wait_ratio": "share of the time that one thread of it was ready and had no processor, 0..1",
}
"""Every signal a Sample may carry, with its meaning and unit. An unknown name is refused at birth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at one target. Either `signals` holds what was seen, or `gap` says why nothing was."""

    at_ns: int
    source: SampleSource
    target: str
    gap: str | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.signals:
            if name not in SIGNALS:
                raise ValueError(f"unknown signal {name!r}: add it to records.SIGNALS first")


EventKind = Literal[
    "run_start", "stage", "settled", "cut", "run_end", "server_info", "fault", "note", "clock", "gathered"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to the run as a whole: a step change, a fault, the end.

    stage carries index, users, settle_s and hold_s; run_end carries reason. Where settle_s is None, `settled`
    with the stage's index says from when on it is judged. `cut` was a stage until the run was interrupted in
    it: it is not judged, because the part that follows holds it again. clock and gathered: of a
    worker elsewhere.
    """

    at_ns: int
    event: EventKind
    data: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


Row = RequestIssued | RequestRecord | StreamCounts | Sample | Event
