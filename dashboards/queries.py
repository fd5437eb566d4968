"""The expressions that several boards share, over the names of rules/*.yml and of our own exporter."""

from __future__ import annotations

from typing import Final

from panels import Annotation, Query, Variable

ENGINE: Final = 'job=~"$job", model_name=~"$model_name", instance=~"$instance", engine=~"$engine"'
MODEL: Final = 'model_name=~"$model_name"'
PROCESS: Final = 'job=~"$job", instance=~"$instance"'
"""A process' own metrics, and vllm:cache_config_info, name no model."""

RUNNING: Final = "engine:llm_requests_running:sum"
WAITING: Final = "engine:llm_requests_waiting:sum"
KV_USAGE: Final = "engine:llm_kv_cache_usage:ratio"
PREEMPTIONS: Final = "engine:llm_preemptions:rate1m"
PROMPT_TOKENS: Final = "engine:llm_prompt_tokens:rate1m"
GENERATION_TOKENS: Final = "engine:llm_generation_tokens:rate1m"
FINISHED: Final = "engine:llm_requests_finished:rate1m"
RESTARTS: Final = "engine:llm_server_restarts:count1h"

VARIABLES: Final = (
    Variable(name="job", title="Job", selector=RUNNING),
    Variable(name="model_name", title="Model", selector=f'{RUNNING}{{job=~"$job"}}'),
    Variable(
        name="instance", title="Server", selector=f'{RUNNING}{{job=~"$job", model_name=~"$model_name"}}'
    ),
    Variable(
        name="engine",
        title="Engine rank",
        selector=f'{RUNNING}{{job=~"$job", model_name=~"$model_name", instance=~"$instance"}}',
    ),
)


def total(name: str, selector: str = ENGINE) -> str:
    return f"sum({name}{{{selector}}})"


def highest(name: str, selector: str = ENGINE) -> str:
    return f"max({name}{{{selector}}})"


def limit(name: str) -> str:
    """safe_limit, observed_max or predicted_max: known also when its load test has ended."""
    return f"sum(model:llm_{name}:requests{{{MODEL}}})"


def server_quantile(quantile: float, family: str, by: str = "") -> str:
    """ttft, itl, e2e or queue. `>= 0` drops the NaN of a minute without a request."""
    buckets = f"engine_le:llm_{family}_seconds_bucket:rate1m{{{ENGINE}}}"
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({quantile:g}, sum by ({labels}) ({buckets})) >= 0"


def client_quantile(quantile: float, family: str) -> str:
    buckets = f"rate(llm_loadtest_{family}_seconds_bucket{{{MODEL}}}[$__rate_interval])"
    return f"histogram_quantile({quantile:g}, sum by (le) ({buckets})) >= 0"


# A colour means the same on every board. "text" is black in the light theme and white in the dark one.
OFFERED: Final = Query(expr=total("llm_loadtest_target_concurrency", MODEL), legend="offered", colour="text")
IN_FLIGHT: Final = Query(
    expr=total("llm_loadtest_in_flight_requests", MODEL), legend="in flight", colour="blue"
)
SEEN_RUNNING: Final = Query(expr=total(RUNNING), legend="running", colour="green")
SEEN_WAITING: Final = Query(expr=total(WAITING), legend="waiting", colour="yellow")
PREDICTED: Final = Query(
    expr=limit("predicted_max"), legend="predicted ceiling", colour="purple", is_limit=True
)
N_MAX: Final = Query(expr=limit("observed_max"), legend="N_max", colour="orange", is_limit=True)
SAFE: Final = Query(expr=limit("safe_limit"), legend="safe limit", colour="red", is_limit=True)
LIMITS: Final = (PREDICTED, N_MAX, SAFE)
STEP: Final = Query(
    expr=highest("llm_loadtest_step_index", MODEL), legend="step", colour="text", on_right=True
)
HEADROOM: Final = f"{limit('safe_limit')} - ({total(RUNNING)} + {total(WAITING)})"

STEPS: Final = Annotation(
    name="Steps",
    expr=f"max by (model_name) (changes(llm_loadtest_step_index{{{MODEL}}}[30s])) > 0",
    colour="blue",
    title="next step: {{model_name}}",
)
RESTARTED: Final = Annotation(
    name="Restarts",
    expr=f"max by (instance) (changes({RESTARTS}{{{ENGINE}}}[30s])) > 0",
    colour="red",
    title="restarted: {{instance}}",
)
