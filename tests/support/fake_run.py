"""Runs made by arithmetic: every figure of the report can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from estimator.capacity import KvPool, Prediction, predict
from estimator.spec import Lengths, Workload
from loadtest.records import Event, RequestRecord, Sample
from loadtest.reporter.saturation import observe
from loadtest.reporter.verdict import Verdict, judge
from loadtest.request_table import RequestTable
from loadtest.results import RunRows
from loadtest.row_file import Damage
from loadtest.run_folder import Manifest
from loadtest.scenario import Limits, Scenario, Stage, scenario_body
from loadtest.scenario.parts import Session, SharedPrefix

SECOND_NS = 1_000_000_000
STAGE_S = 60
SETTLE_S = 10.0
USABLE_BLOCKS = 511
HELD_BLOCKS = 12.5
PROMPT_TOKENS_PER_S = 1000


@dataclass(frozen=True, kw_only=True)
class FakeStage:
    """One stage of a made-up run: `users` users ask one after the other, each request takes `e2e_s`."""

    users: int
    e2e_s: float = 5.0
    ttft_s: float = 0.1
    begin_within_s: float | None = None
    """All users have sent their first request by then; None: within the time of one request."""
    running: float | None = None
    waiting: float = 0.0
    kv_usage_ratio: float | None = None
    preemptions: int = 0
    failing: str | None = None
    failing_share: float = 0.0
    slow_share: float = 0.0
    """First tokens of these, the last of each hundred requests, take 3 s."""
    lateness_s: float = 0.001
    rate_per_s: float | None = None
    unsent_share: float = 0.0
    """Of the requests that come due in an open loop."""
    users_at_work: int | None = None
    burst_share: float = 0.0
    """Of these, the first of each hundred requests, most tokens come several to a read."""
    chunks: int = 256
    cache_hit_ratio: float | None = None
    """Share of the prompt tokens that the prefix cache held; None: the server does not count them."""


@dataclass(frozen=True, kw_only=True)
class FakeRun:
    stages: tuple[FakeStage, ...]
    slots: int | None = 128
    with_prediction: bool = True
    with_metrics: bool = True
    restart_at_s: float | None = None
    silent_from_s: float | None = None
    """/metrics answers no more from then on, though requests do."""
    dies_at_s: float | None = None
    thinking_s: float = 0.0
    has_pauses: bool = False
    limits: Limits = field(default_factory=lambda: Limits(ttft_s=2.0))
    loop_lag_s: float = 0.002
    loop_lags_s: tuple[float, ...] = ()
    """Of several load processes, in place of one."""
    gc_pause_at_s: float | None = None
    """Then one garbage collection takes 80 ms."""
    steal_ratios: tuple[float, ...] = ()
    """What the hypervisor took of each second, again and again; (): not counted here."""
    cpu_wait_ratios: tuple[float, ...] = ()
    """How much of each second the load was ready and had no processor, likewise."""
    shared_prefix: SharedPrefix | None = None
    session: Session | None = None
    model: str = "tiny"
    error: str = "it broke"

    @property
    def prediction(self) -> Prediction | None:
        pool = KvPool(
            blocks=512, reserved_blocks=1, block_size_tokens=32, bytes_per_block=None, source="metrics"
        )
        if not self.with_prediction:
            return None
        return predict(pool, Workload.constant(256, 256), max_model_len=2048, slots=self.slots)

    @property
    def manifest(self) -> Manifest:
        scenario = Scenario(
            name="fake",
            seed=7,
            input_tokens=Lengths.constant(256),
            output_tokens=Lengths.constant(256),
            stages=(Stage(users=1, hold_s=60.0),),
            settle_s=SETTLE_S,
            limits=self.limits,
            shared_prefix=self.shared_prefix,
            session=self.session,
            endpoint="completions" if self.session is None else "chat",
        )
        return Manifest(
            run_id="20261121T024000Z-tiny",
            created_utc="2026-11-21T02:40:00+00:00",
            wall_ns=0,
            mono_ns=0,
            versions={"ullage": "0.1.0"},
            host="http://127.0.0.1:8000",
            engine="vllm",
            model=self.model,
            scenario=scenario_body(scenario),
            stages=(),
            server={},
            state="complete",
        )

    def rows(self) -> RunRows:
        requests: list[RequestRecord] = []
        samples: list[Sample] = []
        events = [Event(at_ns=0, event="run_start", data={})]
        preempted = cached = 0.0
        for index, stage in enumerate(self.stages):
            start_s = index * STAGE_S
            data: dict[str, Any] = {
                "index": index,
                "users": stage.users,
                "settle_s": SETTLE_S,
                "hold_s": 60.0,
                "rate_per_s": stage.rate_per_s,
                "has_pauses": self.has_pauses,
            }
            events.append(Event(at_ns=start_s * SECOND_NS, event="stage", data=data))
            requests += self._requests(stage, start_s, len(requests))
            for second in range(STAGE_S):
                preempted += stage.preemptions / STAGE_S
                cached += PROMPT_TOKENS_PER_S * (stage.cache_hit_ratio or 0.0)
                samples += self._samples(stage, start_s + second + 0.5, preempted, cached)
        end_ns = len(self.stages) * STAGE_S * SECOND_NS
        events.append(Event(at_ns=end_ns, event="run_end", data={"reason": "plan complete"}))
        return RunRows(
            requests=RequestTable.of(requests),
            samples=tuple(samples),
            events=tuple(events),
            damage=Damage(),
        )

    def _is_dead(self, at_s: float) -> bool:
        return self.dies_at_s is not None and at_s > self.dies_at_s

    def _requests(self, stage: FakeStage, start_s: float, first_seq: int) -> list[RequestRecord]:
        made: list[RequestRecord] = []
        for user in range(stage.users):
            begin_s = stage.e2e_s if stage.begin_within_s is None else stage.begin_within_s
            at_s = start_s + begin_s * user / stage.users
            while at_s < start_s + STAGE_S:
                fails = stage.failing is not None and (len(made) % 100) < stage.failing_share * 100
                fails |= self._is_dead(at_s + stage.e2e_s)
                slow = len(made) % 100 >= 100 - stage.slow_share * 100
                asked = replace(stage, ttft_s=3.0) if slow else stage
                made.append(self._request(asked, at_s, first_seq + len(made), fails=fails))
                at_s += stage.e2e_s + self.thinking_s
        return made

    def _request(self, stage: FakeStage, at_s: float, seq: int, *, fails: bool) -> RequestRecord:
        intended_ns = int(at_s * SECOND_NS)
        first_ns = intended_ns + int(stage.ttft_s * SECOND_NS)
        done_ns = intended_ns + int(stage.e2e_s * SECOND_NS)
        good = RequestRecord(
            worker=0,
            seq=seq,
            outcome="ok",
            endpoint="completions",
            planned_input_tokens=256,
            planned_output_tokens=256,
            intended_ns=intended_ns,
            sent_ns=intended_ns + int(stage.lateness_s * SECOND_NS),
            first_token_ns=first_ns,
            last_token_ns=done_ns,
            done_ns=done_ns,
            input_tokens=256,
            output_tokens=256,
            chunks=stage.chunks,
            gap_p50_s=0.0 if seq % 100 < stage.burst_share * 100 else stage.e2e_s / stage.chunks,
        )
        if not fails:
            return good
        outcome: Any = stage.failing or "connect_refused"
        return replace(good, outcome=outcome, first_token_ns=None, last_token_ns=None, error=self.error)

    def _samples(self, stage: FakeStage, at_s: float, preempted: float, cached: float) -> list[Sample]:
        at_ns = int(at_s * SECOND_NS)
        running = stage.users - stage.waiting if stage.running is None else stage.running
        usage = min(running * HELD_BLOCKS / USABLE_BLOCKS, 1.0)
        client = {"client_cpu_ratio": 0.2, "client_loop_lag_max_s": self.loop_lag_s}
        collects = self.gc_pause_at_s is not None and at_s - 1 < self.gc_pause_at_s <= at_s
        client["client_gc_pause_max_s"] = 0.08 if collects else 0.001
        if self.steal_ratios:
            client["client_steal_ratio"] = self.steal_ratios[int(at_s) % len(self.steal_ratios)]
        if self.cpu_wait_ratios:
            client["client_cpu_wait_ratio"] = self.cpu_wait_ratios[int(at_s) % len(self.cpu_wait_ratios)]
        client["client_users"] = float(stage.users if stage.users_at_work is None else stage.users_at_work)
        if stage.rate_per_s is not None:
            client["client_due_total"] = stage.rate_per_s * at_s
            client["client_unsent_total"] = stage.rate_per_s * at_s * stage.unsent_share
        rows = [
            Sample(
                at_ns=at_ns,
                source="client",
                target=f"w{worker:02d}",
                signals={**client, "client_loop_lag_max_s": lag_s},
            )
            for worker, lag_s in enumerate(self.loop_lags_s or (self.loop_lag_s,))
        ]
        silent = self._is_dead(at_s) or (self.silent_from_s is not None and at_s > self.silent_from_s)
        if not self.with_metrics or silent:
            gap = "connection refused" if silent else "HTTP 404"
            return [*rows, Sample(at_ns=at_ns, source="engine", target="t", gap=gap)]
        restarted = self.restart_at_s is not None and at_s > self.restart_at_s
        signals = {
            "running": running,
            "waiting": stage.waiting,
            "kv_usage_ratio": usage if stage.kv_usage_ratio is None else stage.kv_usage_ratio,
            "preemptions_total": float(round(preempted)),
            "process_start_time_seconds": 200.0 if restarted else 100.0,
        }
        if stage.cache_hit_ratio is not None:
            signals["prefix_cache_queries_total"] = PROMPT_TOKENS_PER_S * at_s
            signals["prefix_cache_hits_total"] = cached
        return [*rows, Sample(at_ns=at_ns, source="engine", target="t", signals=signals)]


def verdict_of(run: FakeRun) -> Verdict:
    return judge(run.prediction, observe(run.rows(), run.manifest, run.slots))
