"""The capacity board: a step search, from the predicted ceiling to the number that may be promised."""

from __future__ import annotations

from typing import Final

import queries as q
from panels import Board, Panel, Query, Row, figure
from soak import CONCURRENCY, KV, LOADER, PREEMPTIONS_BY_STEP, TTFT

ENDED: Final = f"rate(llm_loadtest_requests_total{{{q.MODEL}}}[$__rate_interval])"
NOT_KNOWN: Final = "not known"
ERROR: Final = f"{q.limit('observed_max')} / ({q.limit('predicted_max')} > 0) - 1"


ANSWER: Final = Row(
    title="The answer",
    panels=(
        figure(
            "Predicted ceiling",
            "Concurrent requests that fit: the smaller of KV cache and slots.",
            q.limit("predicted_max"),
            no_data=NOT_KNOWN,
        ),
        figure("N_max", "The highest concurrency that held.", q.limit("observed_max"), no_data=NOT_KNOWN),
        figure(
            "Safe limit",
            "80 % of the smallest limit: the number that may be promised.",
            q.limit("safe_limit"),
            no_data=NOT_KNOWN,
        ),
        figure(
            "Estimate error",
            "N_max against the predicted ceiling. 10 % means that more fits than was predicted.",
            ERROR,
            unit="percentunit",
            thresholds=(("red", None), ("orange", -0.25), ("green", -0.1), ("orange", 0.1), ("red", 0.25)),
            no_data=NOT_KNOWN,
        ),
        figure("Offered now", "Concurrent requests that this step asks for.", q.OFFERED.expr),
        figure("Step", "Steps of the search, from 0.", q.STEP.expr, no_data="no load test"),
    ),
)
WALL: Final = Row(
    title="Which wall?",
    panels=(
        Panel(
            title="Tokens a second",
            about="When the load rises and this does not, throughput has reached its plateau.",
            unit="count:tok/s",
            width=8,
            queries=(
                Query(expr=q.total(q.GENERATION_TOKENS), legend="generated", colour="green"),
                Query(expr=q.total(q.PROMPT_TOKENS), legend="prompts", colour="blue"),
            ),
        ),
        Panel(
            title="Wait for a slot, p95",
            about="A queue with KV cache and slots free is prefill. vLLM's lowest bucket is 0.3 s wide: an "
            "empty queue may read as 0.285 s.",
            unit="s",
            width=8,
            queries=(
                Query(expr=q.server_quantile(0.95, "queue"), legend="queue p95", colour="orange"),
                Query(expr=q.server_quantile(0.5, "queue"), legend="queue p50", colour="blue"),
            ),
        ),
        Panel(
            title="Requests by outcome",
            about="As the client saw them end, a second.",
            unit="reqps",
            width=8,
            is_stacked=True,
            queries=(
                Query(
                    expr=f"sum by (outcome) ({ENDED})",
                    legend="{{outcome}}",
                ),
            ),
        ),
        Panel(
            title="Time between tokens, client against server",
            about="p95. A client that sees more than the server sent has a slow network or is slow itself.",
            unit="s",
            width=8,
            queries=(
                Query(
                    expr=q.client_quantile(0.95, "inter_token_latency"), legend="client p95", colour="blue"
                ),
                Query(expr=q.server_quantile(0.95, "itl"), legend="server p95", colour="green"),
            ),
        ),
        Panel(
            title="Time of a whole request, client against server",
            about="p95, from the intended send to the last byte.",
            unit="s",
            width=8,
            queries=(
                Query(expr=q.client_quantile(0.95, "request_duration"), legend="client p95", colour="blue"),
                Query(expr=q.server_quantile(0.95, "e2e"), legend="server p95", colour="green"),
            ),
        ),
        Panel(
            title="Share of good requests",
            about="Of those that ended: succeeded and kept every limit of the scenario.",
            unit="percentunit",
            width=8,
            queries=(
                Query(
                    # rates of counters that began at different scrapes: their quotient may be above 1
                    expr=f"clamp_max(sum(rate(llm_loadtest_good_requests_total{{{q.MODEL}}}"
                    f"[$__rate_interval])) / (sum({ENDED}) > 0), 1)",
                    legend="good",
                    colour="green",
                ),
            ),
        ),
    ),
)
BOARD: Final = Board(
    uid="ullage-capacity",
    title="Ullage / Capacity",
    about="How many requests fit at once, is that true, and what stops the next one?",
    variables=q.VARIABLES,
    annotations=(q.STEPS, q.RESTARTED),
    rows=(
        ANSWER,
        Row(title="The search", panels=(CONCURRENCY, KV, TTFT, PREEMPTIONS_BY_STEP)),
        WALL,
        LOADER,
        Row(
            title="Runs",
            panels=(
                Panel(
                    title="Runs that report now",
                    about="One line a run.",
                    unit="none",
                    kind="table",
                    width=24,
                    height=5,
                    queries=(Query(expr=f"llm_loadtest_run_info{{{q.MODEL}}}"),),
                    columns={"run_id": "Run", "model_name": "Model", "engine_kind": "Engine"},
                    no_data="no load test",
                ),
            ),
        ),
    ),
)
