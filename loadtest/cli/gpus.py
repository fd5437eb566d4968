"""`ullage gpus`: the GPUs of configs/gpus, by what bounds a server on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click

from estimator.catalog import configs_folder, names, read_gpu
from estimator.spec import GpuSpec
from estimator.units import GB, GIB
from loadtest.cli.listing import as_json, as_table, matching

TERA: Final = 1e12
COLUMNS: Final = {
    "GPU": "<",
    "memory GiB": ">",
    "bandwidth GB/s": ">",
    "dense bf16 TFLOPS": ">",
    "compute capability": ">",
}


@click.command()
@click.argument("words", nargs=-1)
@click.option("--json", "machine", is_flag=True, help="For machines.")
def gpus(words: Sequence[str], machine: bool) -> None:
    """List the GPUs that can be named; WORDS keep those that have all of them in their name.

    Memory is what the driver gives a program, which is less than what the name sells. Each figure's source
    is a comment in its file, configs/gpus/NAME.yaml.
    """
    folder = configs_folder()
    found = [read_gpu(name, folder) for name in matching(names("gpus", folder), words, "gpus")]
    if machine:
        click.echo(as_json([_entry(gpu) for gpu in found]))
        return
    click.echo(as_table(COLUMNS, [_row(gpu) for gpu in found]))


def _entry(gpu: GpuSpec) -> dict[str, Any]:
    return {
        "name": gpu.name,
        "vendor": gpu.vendor,
        "memory_total_bytes": gpu.memory_total_bytes,
        "memory_bandwidth_bytes_per_s": gpu.memory_bandwidth_bytes_per_s,
        "dense_bf16_flops_per_s": gpu.dense_bf16_flops_per_s,
        "compute_capability": _capability(gpu),
    }


def _row(gpu: GpuSpec) -> list[str]:
    return [
        gpu.name,
        f"{gpu.memory_total_bytes / GIB:,.2f}",
        f"{gpu.memory_bandwidth_bytes_per_s / GB:,.0f}",
        f"{gpu.dense_bf16_flops_per_s / TERA:,.1f}",
        _capability(gpu) or gpu.vendor,
    ]


def _capability(gpu: GpuSpec) -> str | None:
    return gpu.compute_capability and ".".join(map(str, gpu.compute_capability))
