"""python -m loadtest.collector.scrape: looks at server and GPUs once a second, into rows.

A process of its own, so that neither a slow page nor a driver call can delay a request. It ends on SIGTERM,
on SIGINT, or when its standard input closes because the process that started it has died.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from estimator.errors import EXIT_USAGE, PlainError
from loadtest.access import Access
from loadtest.collector.gpu import GpuReader, NoGpu, gpu_rows, is_this_machine, open_nvml
from loadtest.collector.looks import (
    PrometheusSource,
    PrometheusWatch,
    look_at_gpu_page,
    look_at_pages,
    prometheus_source,
)
from loadtest.collector.page import PageTarget, page_session
from loadtest.origin import key_of_page, parse_origin
from loadtest.row_file import RowFileError, RowWriter
from loadtest.run_folder import Manifest, RunFolder
from loadtest.telemetry import Page, pages_of

SYNC_EVERY_S: Final = 1.0
END_WITHIN_S: Final = 0.8
LAST_LOOK_S: Final = 0.5
EXIT_DISK: Final = 1
STDIN_FD: Final = 0

OpenGpus = Callable[[], GpuReader]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapePlan:
    """What to look at and how often: the pages in `targets`, or `prometheus` in their stead.

    GPUs are seen on `gpu_pages` and through `open_gpus`; None leaves the GPUs of this machine alone.
    """

    targets: tuple[PageTarget, ...] = ()
    prometheus: PrometheusSource | None = None
    gpu_pages: tuple[Page, ...] = ()
    interval_s: float
    open_gpus: OpenGpus | None = None
    access: Access = field(default_factory=Access)


def next_tick_s(start_s: float, now_s: float, interval_s: float) -> float:
    """The first start_s + k * interval_s after now_s: a late look loses ticks and shifts none."""
    return start_s + (math.floor((now_s - start_s) / interval_s) + 1) * interval_s


async def on_grid(interval_s: float, look: Callable[[], Awaitable[None]]) -> None:
    """Awaits `look` now and at every tick of the grid, until it is cancelled or `look` raises."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    while True:
        await look()
        now_s = loop.time()
        await asyncio.sleep(next_tick_s(start_s, now_s, interval_s) - now_s)


async def collect(plan: ScrapePlan, writer: RowWriter, stop: asyncio.Event) -> None:
    """Appends rows until `stop` is set. Raises RowFileError when the disk refuses them, nothing else."""
    async with page_session(plan.access) as session:
        watch = None if plan.prometheus is None else PrometheusWatch(plan.prometheus)

        async def look_at_server() -> None:
            rows = look_at_pages(session, plan.targets) if watch is None else watch.look(session)
            for row in await rows:
                writer.append(row)

        async def sync() -> None:
            _sync(writer)

        looks = [_watch_gpu_page(session, page, plan.interval_s, writer) for page in plan.gpu_pages]
        if plan.open_gpus is not None:
            looks.append(_watch_gpus(plan.open_gpus, plan.interval_s, writer))
        looks += [on_grid(plan.interval_s, look_at_server), on_grid(SYNC_EVERY_S, sync)]
        await _until(stop, looks)
        if watch is not None:  # what was scraped since the last look
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(look_at_server(), LAST_LOOK_S)
    _sync(writer)


async def _until(stop: asyncio.Event, looks: Sequence[Coroutine[None, None, None]]) -> None:
    """Raises what a look raised."""
    tasks = [asyncio.create_task(look) for look in looks]
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in (stopped, *tasks):
        task.cancel()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, Exception):
            raise end


async def _watch_gpu_page(
    session: aiohttp.ClientSession, page: Page, interval_s: float, writer: RowWriter
) -> None:
    reported: dict[str, str] = {}

    async def look() -> None:
        looks = await look_at_gpu_page(session, page)
        for row in gpu_rows(time.perf_counter_ns(), looks, reported):
            writer.append(row)

    await on_grid(interval_s, look)


async def _watch_gpus(open_gpus: OpenGpus, interval_s: float, writer: RowWriter) -> None:
    reader = await asyncio.to_thread(open_gpus)  # NVML blocks
    reported: dict[str, str] = {}

    async def look() -> None:
        looks = await asyncio.to_thread(reader.read)
        for row in gpu_rows(time.perf_counter_ns(), looks, reported):
            writer.append(row)

    await on_grid(interval_s, look)


def _sync(writer: RowWriter) -> None:
    try:
        writer.sync()
    except OSError as error:
        raise RowFileError(f"cannot write {writer.path}: {error.strerror}; free space and rerun") from error


async def _run(plan: ScrapePlan, writer: RowWriter) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(STDIN_FD)
        stop.set()
        # a driver or resolver call that hangs holds a thread, and a thread would hold this process
        last_resort = threading.Timer(END_WITHIN_S, os._exit, args=(0,))
        last_resort.daemon = True
        last_resort.start()

    def on_stdin() -> None:
        if not os.read(STDIN_FD, 4096):
            end()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    if _stdin_is_held_by_a_parent():
        loop.add_reader(STDIN_FD, on_stdin)
    await collect(plan, writer, stop)


def _stdin_is_held_by_a_parent() -> bool:
    """Only a pipe or a socket closes when the other side dies; /dev/null is at its end from the start."""
    try:
        mode = os.fstat(STDIN_FD).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.collector.scrape", description=__doc__)
    parser.add_argument("--run-folder", type=Path, required=True, help="runs/<id>, which must exist")
    parser.add_argument("--target", required=True, help="the server, e.g. http://127.0.0.1:8000")
    parser.add_argument("--engine", choices=("vllm", "lmdeploy"), required=True)
    parser.add_argument("--interval-s", type=_interval_s, default=1.0)
    parser.add_argument("--metrics-path", type=_path, default="/metrics")
    parser.add_argument("--gpu", choices=("auto", "off"), default="auto")
    return parser.parse_args(arguments)


def _interval_s(text: str) -> float:
    interval_s = float(text)
    if not 0.05 <= interval_s <= 3600:
        raise argparse.ArgumentTypeError(f"{text} must be from 0.05 to 3600 seconds")
    return interval_s


def _path(text: str) -> str:
    if not text.startswith("/"):  # "http://host" + "@elsewhere/" would be another host
        raise argparse.ArgumentTypeError(f"{text!r} must begin with '/'")
    return text


def _plan(options: argparse.Namespace, manifest: Manifest) -> ScrapePlan:
    """Of the command line, and of what the manifest says of telemetry. Raises PlainError."""
    origin, telemetry = parse_origin(options.target, manifest.access), manifest.telemetry
    named = pages_of(telemetry.metrics_urls, origin.access, "--metrics-url")
    pages = named or (Page(origin=origin, path=options.metrics_path),)
    watches_gpus = options.gpu == "auto" and not telemetry.gpu_metrics_urls
    return ScrapePlan(
        targets=tuple(
            PageTarget(
                origin=page.origin,
                engine=options.engine,
                path=page.path,
                key=key_of_page(page.origin, manifest.origin),
            )
            for page in pages
        ),
        prometheus=prometheus_source(telemetry, manifest),
        gpu_pages=pages_of(telemetry.gpu_metrics_urls, origin.access, "--gpu-metrics-url"),
        interval_s=options.interval_s,
        open_gpus=_opener([page.origin.host for page in pages]) if watches_gpus else None,
        access=origin.access,
    )


def _opener(hosts: Sequence[str]) -> OpenGpus:
    elsewhere = next((host for host in hosts if not is_this_machine(host)), None)

    def open_local_gpus() -> GpuReader:
        if elsewhere is not None:
            return NoGpu(reason=f"{elsewhere} is another machine: its GPUs cannot be seen from here")
        return open_nvml(os.environ.get("CUDA_VISIBLE_DEVICES"))

    return open_local_gpus


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when it was told to end, 1 when the disk refused a row, 2 for what was asked of it."""
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        folder = RunFolder.open(options.run_folder)
        plan = _plan(options, folder.read_manifest())
        writer = folder.samples_writer("collector")
    except PlainError as error:
        return _complain(error, EXIT_USAGE)
    try:
        asyncio.run(_run(plan, writer))
    except RowFileError as error:
        return _complain(error, EXIT_DISK)
    finally:
        writer.close()
    return 0


def _complain(error: PlainError, exit_code: int) -> int:
    with contextlib.suppress(OSError):  # whoever read our stderr may be gone
        print(f"collector: {error}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
