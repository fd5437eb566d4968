"""Can this machine carry the load? One pure check for each thing that has voided a load test before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from loadtest.audit import STEAL_AMBER, Check, graded
from loadtest.conductor.audit.descriptors import descriptor_check
from loadtest.conductor.audit.host_facts import HostFacts

PROCESS_BYTES: Final = 65 * 2**20
STREAM_BYTES: Final = 40 * 2**10
"""What a load process and each of its streams may hold."""
PORTS_AMBER, PORTS_RED = 0.5, 0.8
TICK_S_MAX: Final = 1e-6
WALL_STEP_AMBER_S: Final = 0.05
TIMER_AMBER_S, TIMER_RED_S = 0.005, 0.1
CARRY_AMBER, CARRY_RED = 0.5, 0.8
TOKENS_PER_S: Final = 50.0
"""Of one stream among many, unless the scenario's limit asks for more: faster than people read."""
ANSWER_TOKENS: Final = 200
"""Where no scenario says it."""
REQUEST_CPU_S: Final = 0.0009
"""What a request takes of a load process beside reading its tokens, by benchmarks/LOG.md 0.8 to 1.0 ms."""
FIRST_TOKEN_S: Final = 0.1
"""Of a quick server: a user's requests do not follow each other faster."""
SLOW_CLOCKS: Final = frozenset({"hpet", "acpi_pm", "jiffies", "pit"})
"""A look at these is a system call or worse: thousands a second are felt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What will be asked of the machine: streams at once, load processes, tokens a second of one stream.

    answer_tokens: of the answer in the middle.
    """

    users: int
    processes: int = 1
    tokens_per_s: float = TOKENS_PER_S
    answer_tokens: int = ANSWER_TOKENS

    @property
    def chunks_per_s(self) -> float:
        """At the most: a server may send several tokens in a chunk."""
        return self.users * self.tokens_per_s

    @property
    def stream_requests_per_s(self) -> float:
        """One stream's, by a server that is quick to its first token."""
        return 1 / (FIRST_TOKEN_S + self.answer_tokens / self.tokens_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """What our reader took from an instant server on loopback, which shares the machine with it.

    `chunks_per_cpu_s`: for a second of the reader's processor time, whoever else was running.
    """

    chunks_per_cpu_s: float
    chunks_per_s: float
    streams: int
    echo_s: float
    chunks_per_read: float = 1.0


def host_checks(facts: HostFacts, plan: LoadPlan) -> tuple[Check, ...]:
    """In the order in which a person would look."""
    return tuple(check(facts, plan) for check in CHECKS)


def file_descriptors(facts: HostFacts, plan: LoadPlan) -> Check:
    return descriptor_check(plan.users, facts.fd_soft, facts.fd_hard)


def ports(facts: HostFacts, plan: LoadPlan) -> Check:
    """Every user holds a port; one that was closed stays taken for a minute (TIME_WAIT)."""
    name = "ports"
    if facts.ports is None:
        return Check(name=name, level="skipped", said="ip_local_port_range is not shown here")
    first, last = facts.ports
    count, waiting = last - first + 1, facts.time_wait or 0
    share = (plan.users + waiting) / count
    level = graded(share, amber=PORTS_AMBER, red=PORTS_RED)
    return Check(
        name=name,
        level=level,
        said=f"{plan.users:,} users and {waiting:,} in TIME_WAIT take {share:.0%} of {count:,} ports",
        fix="" if level == "ok" else 'widen it: sysctl net.ipv4.ip_local_port_range="10240 65535"',
    )


def clock(facts: HostFacts, plan: LoadPlan) -> Check:
    name, timer = "clock", facts.timer
    source = facts.clocksource or "unknown source"
    if timer.went_back:
        return Check(
            name=name, level="red", said=f"the monotonic clock ran backwards ({source})", fix="mend this host"
        )
    if abs(timer.wall_step_s) > WALL_STEP_AMBER_S:
        return Check(
            name=name,
            level="amber",
            said=f"the wall clock was set by {timer.wall_step_s * 1000:+.0f} ms during the look; "
            "intervals are measured on the monotonic one",
            fix="let the time daemon settle",
        )
    if facts.tick_s > TICK_S_MAX or source in SLOW_CLOCKS:
        return Check(
            name=name,
            level="amber",
            said=f"the monotonic clock ({source}) steps by {facts.tick_s * 1e6:g} us",
            fix="boot with clocksource=tsc",
        )
    return Check(name=name, level="ok", said=f"{source}, {facts.tick_s * 1e9:g} ns a step, no jump")


def processors(facts: HostFacts, plan: LoadPlan) -> Check:
    """Each load process may fill one; the collector and the system want another."""
    usable = min(facts.cpus, facts.cpu_quota or facts.cpus)
    quota = "" if facts.cpu_quota is None else f", {facts.cpu_quota:g} by cgroup quota"
    said = f"{plan.processes} load process{'es' * (plan.processes > 1)} on {facts.cpus} processors{quota}"
    if usable < 1:
        return Check(name="processors", level="red", said=said, fix="give the cgroup a whole processor")
    if usable < plan.processes + 1:
        fix = "leave one processor for the collector: fewer --processes, or a bigger machine"
        return Check(name="processors", level="amber", said=said, fix=fix)
    return Check(name="processors", level="ok", said=said)


def load(facts: HostFacts, plan: LoadPlan) -> Check:
    if facts.load_1m is None:
        return Check(name="load", level="skipped", said="/proc/loadavg is not shown here")
    said = f"{facts.load_1m:.1f} runnable tasks in the last minute on {facts.cpus} processors"
    if facts.load_1m > facts.cpus:
        return Check(name="load", level="amber", said=said, fix="end what else runs here")
    return Check(name="load", level="ok", said=said)


def steal(facts: HostFacts, plan: LoadPlan) -> Check:
    """Never red: hosts take by bursts, and what they take of the load itself is seen and judged there."""
    share = facts.steal_ratio
    if share is None:
        return Check(name="steal", level="skipped", said="/proc/stat shows no stolen time")
    level = graded(share, amber=STEAL_AMBER)
    return Check(
        name="steal",
        level=level,
        said=f"{share:.0%} of processor time went to other guests of this hypervisor",
        fix="" if level == "ok" else "load from a machine with processors of its own",
    )


def timers(facts: HostFacts, plan: LoadPlan) -> Check:
    """Judged by the median: one late timer is an accident, half of them are a busy machine."""
    lag_s = facts.timer.lag_median_s
    level = graded(lag_s, amber=TIMER_AMBER_S, red=TIMER_RED_S)
    return Check(
        name="timers",
        level=level,
        said=f"{lag_s * 1000:.2f} ms late in the median, {facts.timer.lag_max_s * 1000:.1f} ms at worst",
        fix="" if level == "ok" else "end what else runs here, or load from another machine",
    )


def memory(facts: HostFacts, plan: LoadPlan) -> Check:
    free = facts.memory_free_bytes
    if free is None:
        return Check(name="memory", level="skipped", said="/proc/meminfo is not shown here")
    needed = plan.processes * PROCESS_BYTES + plan.users * STREAM_BYTES
    level = graded(needed / max(free, 1), amber=0.5, red=1.0)
    return Check(
        name="memory",
        level=level,
        said=f"{needed / 2**20:,.0f} MiB needed, {free / 2**20:,.0f} MiB free",
        fix="" if level == "ok" else "free memory, or use fewer users",
    )


CHECKS: Final[tuple[Callable[[HostFacts, LoadPlan], Check], ...]] = (
    file_descriptors,
    ports,
    clock,
    processors,
    load,
    steal,
    timers,
    memory,
)


def echo_check(echo: Echo | None, facts: HostFacts, plan: LoadPlan) -> Check:
    """The plan against what a load process carries; those beyond the processors there are add nothing.

    What a request takes beside its tokens was measured elsewhere, with a server's speed that is assumed: it
    warns, and only what the reader was seen to take stops a run.
    """
    name = "echo"
    if echo is None:
        return Check(name=name, level="amber", said="the reader could not be tried on loopback", fix="rerun")
    cores = min(plan.processes, facts.cpus, facts.cpu_quota or facts.cpus)
    reading = plan.tokens_per_s / echo.chunks_per_cpu_s  # of a processor, each stream
    carried = cores / (reading + plan.stream_requests_per_s * REQUEST_CPU_S)
    share = plan.users / carried
    is_too_much_to_read = plan.users * reading / cores > CARRY_RED
    level = "red" if is_too_much_to_read else graded(share, amber=CARRY_AMBER)
    return Check(
        name=name,
        level=level,
        said=(
            f"{echo.chunks_per_cpu_s:,.0f} chunks/s read a processor ({echo.echo_s:.1f} s tried), "
            f"{REQUEST_CPU_S * 1000:g} ms a request: {carried:,.0f} streams of {plan.answer_tokens:,} tokens "
            f"at {plan.tokens_per_s:g}/s; {plan.users:,} take {share:.0%}"
        ),
        fix="" if level == "ok" else "give --processes more, on a machine with as many processors",
        figures={
            "chunks_per_cpu_s": round(echo.chunks_per_cpu_s, 1),
            "chunks_per_s": round(echo.chunks_per_s, 1),
            "echo_s": round(echo.echo_s, 3),
            "chunks_per_read": round(echo.chunks_per_read, 3),
            "planned_chunks_per_s": plan.chunks_per_s,
            "carried_streams": round(carried, 1),
        },
    )
