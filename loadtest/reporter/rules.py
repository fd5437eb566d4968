"""A signed verdict -> Prometheus rules that guard it. Pure; their unit tests are in rule_tests.py.

The file stands alone: it needs no other rules. Its records are what the boards draw as limits once the load
test has ended (dashboards/rules/limits.yml). All expressions are of one server, as the number is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from estimator.errors import PlainError
from loadtest.reporter.client_health import SEND_LATENESS_S
from loadtest.reporter.plain import one_line
from loadtest.reporter.verdict import Verdict
from loadtest.run_folder import Manifest

PREEMPTIONS_PER_S: Final = 0.1
KV_USAGE_RATIO: Final = 0.95
STEPS: Final = 40
"""How many more values a series of a unit test has after its first."""


class NothingSignedError(PlainError):
    """The run signed no number; ends with the exit code of its verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What one engine calls what the rules look at. Of several names each that a server shows counts.

    `preemptions` is None where it does not count them.
    """

    running: str
    waiting: tuple[str, ...]
    kv_usage: tuple[str, ...]
    preemptions: str | None
    generated: str
    ttft: str
    slots_flag: str


ENGINES: Final[Mapping[str, Names]] = {
    "vllm": Names(
        running="vllm:num_requests_running",
        waiting=("vllm:num_requests_waiting",),
        kv_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        preemptions="vllm:num_preemptions_total",
        generated="vllm:generation_tokens_total",
        ttft="vllm:time_to_first_token_seconds_bucket",
        slots_flag="--max-num-seqs",
    ),
    "lmdeploy": Names(
        running="lmdeploy:num_requests_running",
        waiting=("lmdeploy:num_requests_waiting", "lmdeploy:num_api_requests_waiting"),
        kv_usage=("lmdeploy:gpu_cache_usage_perc",),
        preemptions=None,
        generated="lmdeploy:generation_tokens_total",
        ttft="lmdeploy:time_to_first_token_seconds_bucket",
        slots_flag="--max-batch-size",
    ),
}

Values = Mapping[str, str]
"""Of a unit test: series without the labels that all share -> values in promtool's notation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """`loud` are values on which it fires, `quiet` ones just short of that."""

    name: str
    expr: str
    lasting: str
    severity: str
    summary: str
    action: str
    loud: Values
    quiet: Values
    of_server: bool = True
    """It names the server; else the model alone."""


def rules_yaml(verdict: Verdict, manifest: Manifest) -> str:
    """Recording rules of the limits, and alerts. Raises NothingSignedError unless the verdict is PASS."""
    require_signed(verdict, manifest)
    labels = {"model_name": manifest.model, "run_id": manifest.run_id}
    records = [
        {"record": f"llm_loadtest:{name}_concurrency:signed", "expr": f"vector({value})", "labels": labels}
        for name, value in limits_of(verdict).items()
    ]
    alerts = [rule_of(alert, manifest) for alert in alerts_of(verdict, manifest)]
    groups = [
        {"name": f"ullage-{manifest.run_id}-limits", "rules": records},
        {"name": f"ullage-{manifest.run_id}-alerts", "rules": alerts},
    ]
    return _head(verdict, manifest) + dump({"groups": groups})


def require_signed(verdict: Verdict, manifest: Manifest) -> None:
    if verdict.status != "PASS":
        error = NothingSignedError(
            f"{manifest.run_id} is {verdict.status} and signs no number to guard: {verdict.reason}"
        )
        error.exit_code = verdict.exit_code
        raise error


def limits_of(verdict: Verdict) -> Mapping[str, int]:
    predicted = [n for n in (verdict.n_kv, verdict.n_slots) if n is not None]
    limits = {"safe_limit": verdict.n_safe, "observed_max": verdict.n_max}
    return limits | ({"predicted_max": min(predicted)} if predicted else {})


def _head(verdict: Verdict, manifest: Manifest) -> str:
    """What to set, so that the alerts stay silent."""
    slots = min(n for n in (verdict.n_kv, verdict.n_max) if n is not None)
    flag = ENGINES[manifest.engine].slots_flag
    engines = 1 if verdict.prediction is None else verdict.prediction.pool.engines
    share = f"; for each of {engines} engines" if engines > 1 else "; divide by data-parallel ranks"
    return (
        f"# {one_line(manifest.model)}: {verdict.n_safe} parallel requests, signed by {manifest.run_id}.\n"
        f"# Gateway: let at most {verdict.n_safe} requests at once through to one server.\n"
        f"# Server: {flag} {slots // engines} (what held and what memory guarantees{share}).\n"
    )


def alerts_of(verdict: Verdict, manifest: Manifest) -> Iterator[Alert]:
    names, safe = ENGINES[manifest.engine], verdict.n_safe
    model = f"{{model_name={quoted(manifest.model)}}}"
    by = "by (model_name, instance)"
    running, waiting = f"sum {by} ({names.running}{model})", f"sum {by} ({_any_of(names.waiting, model)})"
    yield Alert(
        name="LLMAboveSignedLimit",
        expr=f"{running} + {waiting} > {safe}",
        lasting="2m",
        severity="warning",
        summary=f"has more requests than the {safe} that were signed",
        action="Lower the gateway's cap, or add a server.",
        loud={names.running: _level(safe), names.waiting[0]: _level(1)},
        quiet={names.running: _level(safe), names.waiting[0]: _level(0)},
    )
    yield Alert(
        name="LLMWaitingBelowSignedLimit",
        expr=f"{waiting} > 0 and {running} + {waiting} <= {safe}",
        lasting="5m",
        severity="warning",
        summary=f"lets requests wait with no more than the {safe} that were signed",
        action="Requests are longer than those that were signed, or the server has changed: sign again.",
        loud={names.running: _level(safe - 1), names.waiting[0]: _level(1)},
        quiet={names.running: _level(safe), names.waiting[0]: _level(1)},
    )
    yield Alert(
        name="LLMSignedKvCacheHigh",
        expr=f"max {by} ({_any_of(names.kv_usage, model)}) > {KV_USAGE_RATIO}",
        lasting="5m",
        severity="warning",
        summary=f"uses more than {KV_USAGE_RATIO:.0%} of its KV cache",
        action="The next longer request will be preempted or wait: lower the gateway's cap.",
        loud={names.kv_usage[0]: _level(0.96)},
        quiet={names.kv_usage[0]: _level(KV_USAGE_RATIO)},
    )
    if names.preemptions is not None:
        yield Alert(
            name="LLMSignedPreemptionStorm",
            expr=f"sum {by} (rate({names.preemptions}{model}[1m])) > {PREEMPTIONS_PER_S}",
            lasting="1m",
            severity="critical",
            summary=f"preempts more than {PREEMPTIONS_PER_S} requests a second",
            action=f"Lower {names.slots_flag} or the gateway's cap: each of them is computed again.",
            loud={names.preemptions: f"0+2x{STEPS}"},
            quiet={names.preemptions: f"0+1x{STEPS}"},
        )
    yield from _slow(verdict, names, model)
    yield from _gone(names, model)


def _slow(verdict: Verdict, names: Names, model: str) -> Iterator[Alert]:
    limit_s, percentile = verdict.observation.limits.ttft_s, verdict.observation.percentile
    if limit_s is not None:
        yield Alert(
            name="LLMSignedTtftBurn",
            expr=f"histogram_quantile({percentile / 100:g}, sum by (model_name, instance, le) "
            f"(rate({names.ttft}{model}[5m]))) > {limit_s:g}",
            lasting="5m",
            severity="warning",
            summary=f"exceeds its limit of {limit_s:g} s to the first token at p{percentile:g}",
            action="See the queue first, then the length of the prompts.",
            loud=_spread(names.ttft, limit_s, slow=True),
            quiet=_spread(names.ttft, limit_s, slow=False),
        )
    lag = "llm_loadtest_schedule_lag_seconds_bucket"
    yield Alert(
        name="LLMSignedLoaderLate",
        expr=f"histogram_quantile(0.99, sum by (model_name, le) (rate({lag}{model}[1m]))) "
        f"> {SEND_LATENESS_S:g}",
        lasting="30s",
        severity="warning",
        summary=f"is asked more than {SEND_LATENESS_S:g} s late by its load test",
        action="The loader is the bottleneck: add workers (--processes) or machines.",
        loud=_spread(lag, SEND_LATENESS_S, slow=True),
        quiet=_spread(lag, SEND_LATENESS_S, slow=False),
        of_server=False,
    )


def _gone(names: Names, model: str) -> Iterator[Alert]:
    yield Alert(
        name="LLMSignedServerDown",
        expr=f"absent({names.running}{model})",
        lasting="1m",
        severity="critical",
        summary="shows no metrics on any server",
        action="Is a server up, and may Prometheus reach it?",
        loud={"up": _level(0)},
        quiet={names.running: _level(0)},
        of_server=False,
    )
    yield Alert(
        name="LLMSignedServerRestarted",
        expr=f"max by (model_name, instance) (resets({names.generated}{model}[15m])) > 0",
        lasting="0s",
        severity="warning",
        summary="restarted within 15 minutes",
        action="Read the server's log; what ran meanwhile was not served as signed.",
        loud={names.generated: f"0+9x{STEPS // 2} 0+9x{STEPS // 2}"},
        quiet={names.generated: f"0+9x{STEPS}"},
    )


def _level(value: float) -> str:
    return f"{value:g}x{STEPS}"


def _spread(bucket: str, limit_s: float, *, slow: bool) -> Values:
    """All requests take at most the limit, or all take more than it and at most twice that."""
    rising = f"0+10x{STEPS}"
    edges = {f"{limit_s:g}": _level(0) if slow else rising, f"{2 * limit_s:g}": rising, "+Inf": rising}
    return {f'{bucket}{{le="{edge}"}}': values for edge, values in edges.items()}


def _any_of(names: tuple[str, ...], model: str) -> str:
    if len(names) == 1:
        return f"{names[0]}{model}"
    return f'{{__name__=~"{"|".join(names)}",{model.removeprefix("{")}'


def quoted(text: str) -> str:
    """A string of PromQL."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def rule_of(alert: Alert, manifest: Manifest) -> dict[str, Any]:
    where = " on {{ $labels.instance }}" if alert.of_server else ""
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasting,
        "labels": {"severity": alert.severity, "run_id": manifest.run_id},
        "annotations": {
            "summary": f"{{{{ $labels.model_name }}}}{where} {alert.summary}",
            "action": alert.action,
        },
    }


def dump(body: Mapping[str, Any]) -> str:
    class Plain(yaml.SafeDumper):
        """Without references: labels that are equal are written out."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(dict(body), Dumper=Plain, sort_keys=False, width=110)
