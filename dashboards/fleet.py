"""The fleet board: vLLM and LMDeploy side by side, under one name each."""

from __future__ import annotations

from typing import Final

import queries as q
from panels import Board, Panel, Query, Row, figure

BAD_FROM_ONE: Final = (("green", None), ("red", 1.0))
HELD: Final = f"({q.RUNNING}{{{q.ENGINE}}} + {q.WAITING}{{{q.ENGINE}}})"
"""Requests a server has, by rank."""

SERVER: Final = "{{engine_kind}} {{model_name}} {{instance}}"
BY: Final = "engine_kind, model_name, instance"


def each(title: str, unit: str, about: str, expr: str, no_data: str = "no traffic") -> Panel:
    """One line a server."""
    return Panel(
        title=title,
        about=about,
        unit=unit,
        width=8,
        queries=(Query(expr=expr, legend=SERVER),),
        no_data=no_data,
        min_value=None if title == "Headroom" else 0.0,
    )


def summed(name: str) -> str:
    return f"sum by ({BY}) ({name}{{{q.ENGINE}}})"


BOARD: Final = Board(
    uid="ullage-fleet",
    title="Ullage / Fleet",
    about="Which server is close to its limit, and how do the engines compare?",
    variables=q.VARIABLES,
    annotations=(q.RESTARTED,),
    rows=(
        Row(
            title="Now",
            panels=(
                figure(
                    "Servers", "That show metrics.", f"count(sum by (instance) ({q.RUNNING}{{{q.ENGINE}}}))"
                ),
                figure(
                    "Unreachable",
                    "Targets of these jobs that cannot be scraped.",
                    'count(up{job=~"$job"} == 0) or vector(0)',
                    thresholds=BAD_FROM_ONE,
                ),
                figure("Running", "Requests in engine batches.", q.total(q.RUNNING)),
                figure("Waiting", "Requests in queues.", q.total(q.WAITING)),
                figure(
                    "Above their limit",
                    "Models with more requests than was signed for one server.",
                    f"count(sum by (model_name, instance) {HELD} "
                    f"> on (model_name) group_left model:llm_safe_limit:requests{{{q.MODEL}}}) or vector(0)",
                    thresholds=BAD_FROM_ONE,
                ),
                figure(
                    "Restarts in an hour",
                    "Servers whose counters began again.",
                    f"count({q.RESTARTS}{{{q.ENGINE}}} > 0) or vector(0)",
                    thresholds=BAD_FROM_ONE,
                ),
            ),
        ),
        Row(
            title="Load",
            panels=(
                each("Running", "none", "Requests in engine batches.", summed(q.RUNNING)),
                each("Waiting", "none", "Requests in queues.", summed(q.WAITING)),
                each(
                    "Headroom",
                    "none",
                    "Safe limit of the model less what this server has; below 0 nothing is promised.",
                    f"-(sum by ({BY}) {HELD}) "
                    f"+ on (model_name) group_left model:llm_safe_limit:requests{{{q.MODEL}}}",
                    "no limit known",
                ),
                each(
                    "KV cache",
                    "percentunit",
                    "The fullest rank of each server.",
                    f"max by ({BY}) ({q.KV_USAGE}{{{q.ENGINE}}})",
                ),
                each(
                    "Preemptions",
                    "suffix:/s",
                    "LMDeploy does not count its own; without its lines others may change colour.",
                    summed(q.PREEMPTIONS),
                    "not counted",
                ),
                each("Requests finished", "reqps", "Aborted ones do not count.", summed(q.FINISHED)),
            ),
        ),
        Row(
            title="Speed",
            panels=(
                each(
                    "Time to first token p95",
                    "s",
                    "Of the server, interpolated within its buckets.",
                    q.server_quantile(0.95, "ttft", BY),
                ),
                each(
                    "Time between tokens p95",
                    "s",
                    "Of the server, interpolated within its buckets.",
                    q.server_quantile(0.95, "itl", BY),
                ),
                each(
                    "Whole request p95",
                    "s",
                    "Of the server, interpolated within its buckets.",
                    q.server_quantile(0.95, "e2e", BY),
                ),
                each("Generated tokens", "count:tok/s", "All ranks.", summed(q.GENERATION_TOKENS)),
                each("Prompt tokens", "count:tok/s", "All ranks.", summed(q.PROMPT_TOKENS)),
                each(
                    "Generated tokens a running request",
                    "count:tok/s",
                    "What one user gets.",
                    f"{summed(q.GENERATION_TOKENS)} / ({summed(q.RUNNING)} > 0)",
                ),
            ),
        ),
        Row(
            title="Ranks",
            panels=(
                Panel(
                    title="Running by rank",
                    about="Data-parallel ranks that drift apart waste the cache of the idle one.",
                    unit="none",
                    queries=(
                        Query(
                            expr=f"sum by (instance, engine) ({q.RUNNING}{{{q.ENGINE}}})",
                            legend="{{instance}} rank {{engine}}",
                        ),
                    ),
                ),
                Panel(
                    title="KV cache by rank",
                    about="The fullest rank preempts first.",
                    unit="percentunit",
                    queries=(
                        Query(
                            expr=f"max by (instance, engine) ({q.KV_USAGE}{{{q.ENGINE}}})",
                            legend="{{instance}} rank {{engine}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
