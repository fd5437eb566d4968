"""The soak board: does the signed number hold for hours, and does anything drift meanwhile?"""

from __future__ import annotations

from typing import Final

import queries as q
from panels import Board, Panel, Query, Row, figure

HEADROOM: Final = figure(
    "Headroom",
    "Safe limit less the requests the server has, running or waiting.",
    q.HEADROOM,
    thresholds=(("red", None), ("orange", 0), ("green", 1)),
    no_data="no limit known",
)
KV_STAT: Final = figure(
    "KV cache",
    "Share of the KV cache in use: the fullest engine rank.",
    q.highest(q.KV_USAGE),
    unit="percentunit",
    thresholds=(("green", None), ("orange", 0.9), ("red", 0.98)),
)
PREEMPTIONS_STAT: Final = figure(
    "Preemptions",
    "A request thrown out of a full KV cache, to be computed again. LMDeploy does not count them.",
    q.total(q.PREEMPTIONS),
    unit="suffix:/s",
    thresholds=(("green", None), ("orange", 0.001), ("red", 1)),
    no_data="not counted",
)
CONCURRENCY: Final = Panel(
    title="Concurrency against the limits",
    about="What was asked for, what is in flight, what the server runs and keeps waiting. The dashed lines "
    "stay when the load test has ended. A limit is that of one server: choose one.",
    unit="none",
    queries=(q.OFFERED, q.IN_FLIGHT, q.SEEN_RUNNING, q.SEEN_WAITING, *q.LIMITS),
)
KV: Final = Panel(
    title="KV cache, observed against predicted",
    about="The fullest and the mean engine rank, and what the estimate expects at the load offered.",
    unit="percentunit",
    queries=(
        Query(expr=q.highest(q.KV_USAGE), legend="fullest rank", colour="green"),
        Query(expr=f"avg({q.KV_USAGE}{{{q.ENGINE}}})", legend="mean of ranks", colour="blue"),
        Query(
            expr=q.highest("llm_loadtest_predicted_kv_cache_usage_ratio", q.MODEL),
            legend="predicted",
            colour="purple",
            is_limit=True,
        ),
    ),
)
TTFT: Final = Panel(
    title="Time to first token, client against server",
    about="The gap between the two is the network, proxies and the API server's own queue. Quantiles are "
    "interpolated within buckets; the report has exact ones.",
    unit="s",
    queries=(
        Query(expr=q.client_quantile(0.95, "request_ttft"), legend="client p95", colour="blue"),
        Query(expr=q.server_quantile(0.95, "ttft"), legend="server p95", colour="green"),
        Query(expr=q.client_quantile(0.5, "request_ttft"), legend="client p50", colour="purple"),
        Query(expr=q.server_quantile(0.5, "ttft"), legend="server p50", colour="orange"),
    ),
)
PREEMPTIONS_BY_STEP: Final = Panel(
    title="Preemptions by the step that caused them",
    about="Preemptions a second, coloured by the step of the load in which they happened.",
    unit="suffix:/s",
    is_stacked=True,
    queries=(
        Query(
            expr=f'count_values by (model_name) ("step", max by (model_name) '
            f"(llm_loadtest_step_index{{{q.MODEL}}})) * on (model_name) group_left "
            f"sum by (model_name) ({q.PREEMPTIONS}{{{q.ENGINE}}})",
            legend="step {{step}}",
        ),
    ),
    no_data="not counted",
)
LOADER: Final = Row(
    title="Loader: can its numbers be trusted?",
    panels=(
        Panel(
            title="Requests sent late",
            about="How long after its time a request left the loader. Late requests hide a slow server.",
            unit="s",
            width=8,
            queries=(
                Query(expr=q.client_quantile(0.99, "schedule_lag"), legend="p99", colour="orange"),
                Query(expr=q.client_quantile(0.5, "schedule_lag"), legend="p50", colour="blue"),
            ),
        ),
        Panel(
            title="Processor of each worker",
            about="Share of one core. Above 90 % a worker measures itself.",
            unit="percentunit",
            width=8,
            queries=(
                Query(expr="max by (worker) (llm_loadtest_worker_cpu_usage_ratio)", legend="{{worker}}"),
            ),
        ),
        Panel(
            title="Workers and failed looks",
            about="Load processes that report, and looks at a server's metrics that failed, in a minute.",
            unit="none",
            width=8,
            queries=(
                Query(expr=q.total("llm_loadtest_workers", q.MODEL), legend="workers", colour="blue"),
                Query(
                    expr="sum(increase(llm_loadtest_scrape_errors_total[1m])) or vector(0)",
                    legend="failed looks",
                    colour="red",
                ),
            ),
        ),
    ),
)
DRIFT: Final = Row(
    title="Drift: what hours do",
    panels=(
        Panel(
            title="Memory of the API server",
            about="Resident bytes. A line that only rises is a leak.",
            unit="bytes",
            width=8,
            queries=(
                Query(expr=f"process_resident_memory_bytes{{{q.PROCESS}}}", legend="{{job}} {{instance}}"),
            ),
        ),
        Panel(
            title="TTFT p95 over an hour",
            about="Of the server. It rises when something ages although the load does not change.",
            unit="s",
            width=8,
            queries=(
                Query(
                    expr="histogram_quantile(0.95, sum by (instance, le) "
                    f"(avg_over_time(engine_le:llm_ttft_seconds_bucket:rate1m{{{q.ENGINE}}}[1h]))) >= 0",
                    legend="{{instance}}",
                ),
            ),
        ),
        Panel(
            title="KV cache, lowest of ten minutes",
            about="After the load it returns to zero (to the cached prefixes): blocks that stay are lost.",
            unit="percentunit",
            width=8,
            queries=(
                Query(
                    expr=f"min by (instance, engine) (min_over_time({q.KV_USAGE}{{{q.ENGINE}}}[10m]))",
                    legend="{{instance}} rank {{engine}}",
                ),
            ),
        ),
        Panel(
            title="Restarts in an hour",
            about="Counters that began again. A restart in a soak ends it.",
            unit="none",
            width=8,
            queries=(Query(expr=f"max by (instance) ({q.RESTARTS}{{{q.ENGINE}}})", legend="{{instance}}"),),
        ),
        Panel(
            title="Open files of the API server",
            about="Connections that are never closed show here first.",
            unit="none",
            width=8,
            queries=(Query(expr=f"process_open_fds{{{q.PROCESS}}}", legend="{{job}} {{instance}}"),),
        ),
        Panel(
            title="Cache as the server was started",
            about="vLLM's own settings; LMDeploy shows none. Blocks are those of all ranks together.",
            unit="none",
            kind="table",
            width=8,
            no_data="not shown",
            queries=(Query(expr=f"vllm:cache_config_info{{{q.PROCESS}}}"),),
            columns={
                "instance": "Server",
                "engine": "Rank",
                "num_gpu_blocks": "Blocks",
                "block_size": "Block size",
                "gpu_memory_utilization": "GPU memory share",
            },
        ),
    ),
)
BOARD: Final = Board(
    uid="ullage-soak",
    title="Ullage / Soak",
    about="Does the signed number hold for hours?",
    variables=q.VARIABLES,
    annotations=(q.STEPS, q.RESTARTED),
    rows=(
        Row(
            title="Now",
            panels=(
                figure(
                    "Offered",
                    "Concurrent requests the load test asks for.",
                    q.OFFERED.expr,
                    no_data="no load test",
                ),
                figure("Running", "Requests the server works on.", q.SEEN_RUNNING.expr),
                HEADROOM,
                KV_STAT,
                PREEMPTIONS_STAT,
                figure(
                    "TTFT p95 of the client",
                    "From the intended send to the first token.",
                    q.client_quantile(0.95, "request_ttft"),
                    unit="s",
                ),
            ),
        ),
        Row(title="Prediction and reality", panels=(CONCURRENCY, KV, TTFT, PREEMPTIONS_BY_STEP)),
        DRIFT,
        LOADER,
    ),
)
