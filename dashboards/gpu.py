"""The GPU board: memory, work, power and faults of every GPU, beside what the engines made of them."""

from __future__ import annotations

from typing import Final

import queries as q
from panels import Board, Panel, Query, Row, Variable, figure

GPU: Final = 'instance=~"$gpu_host", gpu=~"$gpu"'
NO_GPU: Final = "no GPU seen"
USED: Final = f"gpu:llm_gpu_memory_used:bytes{{{GPU}}}"
TOTAL: Final = f"gpu:llm_gpu_memory_total:bytes{{{GPU}}}"
POWER: Final = f"gpu:llm_gpu_power:watts{{{GPU}}}"


def of_gpus(title: str, unit: str, about: str, expr: str) -> Panel:
    return figure(title, about, expr, unit=unit, no_data=NO_GPU)


def each(title: str, unit: str, about: str, expr: str, width: int = 8) -> Panel:
    """One line a GPU."""
    query = Query(expr=f"max by (instance, gpu) ({expr})", legend="{{instance}} {{gpu}}")
    return Panel(title=title, about=about, unit=unit, width=width, queries=(query,), no_data=NO_GPU)


BOARD: Final = Board(
    uid="ullage-gpu",
    title="Ullage / GPU",
    about="Are the GPUs busy, cool and whole, and what does a token cost in energy?",
    variables=(
        *q.VARIABLES,
        Variable(
            name="gpu_host",
            title="GPU exporter",
            selector="gpu:llm_gpu_memory_used:bytes",
            label="instance",
        ),
        Variable(name="gpu", title="GPU", selector='gpu:llm_gpu_memory_used:bytes{instance=~"$gpu_host"}'),
    ),
    annotations=(q.STEPS, q.RESTARTED),
    rows=(
        Row(
            title="Now",
            panels=(
                of_gpus("GPUs", "none", "That an exporter shows.", f"count({USED})"),
                of_gpus("Memory used", "bytes", "Of all GPUs chosen.", f"sum({USED})"),
                of_gpus("Memory share", "percentunit", "Of all GPUs chosen.", f"sum({USED}) / sum({TOTAL})"),
                of_gpus("Power", "watt", "Of all GPUs chosen.", f"sum({POWER})"),
                of_gpus(
                    "Hottest",
                    "celsius",
                    "Of all GPUs chosen.",
                    f"max(gpu:llm_gpu_temperature:celsius{{{GPU}}})",
                ),
                of_gpus(
                    "Energy of a token",
                    "joule",
                    "Power of the GPUs chosen over the tokens that the servers chosen generate.",
                    f"sum({POWER}) / (sum({q.GENERATION_TOKENS}{{{q.ENGINE}}}) > 0)",
                ),
            ),
        ),
        Row(
            title="Work",
            panels=(
                each(
                    "Memory used",
                    "bytes",
                    "A flat line is right: the KV cache is taken whole at the start. A rise is a leak.",
                    USED,
                ),
                each(
                    "Busy",
                    "percentunit",
                    "Share of the time in which a kernel ran.",
                    f"gpu:llm_gpu_busy:ratio{{{GPU}}}",
                ),
                Panel(
                    title="KV cache beside GPU memory",
                    about="The first moves with the load, the second must not.",
                    unit="percentunit",
                    width=8,
                    queries=(
                        Query(expr=q.highest(q.KV_USAGE), legend="KV cache, fullest rank", colour="green"),
                        Query(expr=f"max({USED} / {TOTAL})", legend="GPU memory, fullest", colour="blue"),
                    ),
                ),
            ),
        ),
        Row(
            title="Power and health",
            panels=(
                each("Power", "watt", "A GPU at its power limit lowers its clock.", POWER),
                each(
                    "Temperature",
                    "celsius",
                    "A GPU that grows too hot lowers its clock.",
                    f"gpu:llm_gpu_temperature:celsius{{{GPU}}}",
                ),
                each(
                    "Clock",
                    "hertz",
                    "Of the multiprocessors. A fall under load is the power or heat limit.",
                    f"gpu:llm_gpu_sm_clock:hertz{{{GPU}}}",
                ),
                each(
                    "Last fault (XID)",
                    "none",
                    "NVIDIA's code of the last fault, 0 for none; the table is in its documentation.",
                    f"gpu:llm_gpu_xid:code{{{GPU}}}",
                    width=12,
                ),
                Panel(
                    title="Tokens and power",
                    about="What the servers make of the power.",
                    unit="count:tok/s",
                    queries=(
                        Query(expr=q.total(q.GENERATION_TOKENS), legend="generated", colour="green"),
                        Query(expr=f"sum({POWER})", legend="watts", colour="orange", on_right=True),
                    ),
                ),
            ),
        ),
    ),
)
