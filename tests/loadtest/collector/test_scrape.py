"""The collector keeps its grid, ends when it is told to, and leaves whole rows however it ends."""

from __future__ import annotations

import asyncio
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.collector.gpu import GpuLook
from loadtest.collector.page import PageTarget
from loadtest.collector.scrape import ScrapePlan, collect, main, next_tick_s, on_grid
from loadtest.origin import parse_origin
from loadtest.records import Sample
from loadtest.row_file import Damage
from loadtest.run_folder import Manifest, RunFolder

REPOSITORY = Path(__file__).parents[3]
LOADED = (REPOSITORY / "tests/fixtures/metrics/vllm-0.32-loaded.txt").read_bytes()
END_S_MAX = 60.0
"""Only what never happens takes so long, however busy the machine."""


@contextmanager
def serving(answer: Callable[[], bytes | None] = lambda: LOADED) -> Iterator[str]:
    """A server whose every page is `answer()`; None never answers until the server is closed."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer()
            if body is None:
                closing.wait()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path, "a-run")
    made.write_manifest(
        Manifest(
            run_id="a-run",
            created_utc="2026-11-21T02:40:00+00:00",
            wall_ns=1,
            mono_ns=1,
            versions={},
            host="http://127.0.0.1:8000",
            engine="vllm",
            model="tiny",
            scenario={},
            stages=(),
            server={},
        )
    )
    return made


def samples(folder: RunFolder, damage: Damage | None = None) -> list[Sample]:
    return [row for row in folder.rows(damage or Damage()) if isinstance(row, Sample)]


def wait_for(happened: Callable[[], bool], within_s: float = END_S_MAX) -> None:
    """Looks again every 10 ms, because no file tells when another process has written to it."""
    deadline_s = time.monotonic() + within_s
    never = threading.Event()
    while not happened():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        never.wait(0.01)


@contextmanager
def collector(folder: RunFolder, url: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        *(sys.executable, "-m", "loadtest.collector.scrape", "--run-folder", str(folder.root)),
        *("--target", url, "--engine", "vllm", "--interval-s", "0.05", *more),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=REPOSITORY) as process:
        try:
            yield process
        finally:
            process.kill()


@given(
    start_s=st.floats(0, 1e6),
    late_s=st.floats(0, 1e4),
    interval_s=st.sampled_from([0.05, 0.5, 1.0, 10.0]),
)
def test_the_next_tick_is_on_the_grid_ahead_and_at_most_one_interval_away(
    start_s: float, late_s: float, interval_s: float
) -> None:
    now_s = start_s + late_s
    tick_s = next_tick_s(start_s, now_s, interval_s)
    ticks = (tick_s - start_s) / interval_s
    assert ticks == pytest.approx(round(ticks), abs=1e-4)
    assert -1e-6 < tick_s - now_s <= interval_s + 1e-6


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next deadline instead of waiting for it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        loop = self

        class Jump(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
                loop.now_s += timeout or 0.0
                return super().select(0)

        super().__init__(Jump())

    def time(self) -> float:
        return self.now_s


def test_a_look_that_overruns_loses_ticks_and_shifts_none() -> None:
    looks_at_s: list[float] = []
    durations_s = iter([0.1, 2.5, 0.1, 0.999])

    async def look() -> None:
        looks_at_s.append(asyncio.get_running_loop().time())
        duration_s = next(durations_s, None)
        if duration_s is None:
            raise EOFError
        await asyncio.sleep(duration_s)

    with asyncio.Runner(loop_factory=ClockLoop) as runner, pytest.raises(EOFError):
        runner.run(on_grid(1.0, look))
    assert looks_at_s == pytest.approx([100.0, 101.0, 104.0, 105.0, 106.0])


class CountingGpu:
    """A GPU that asks the collection to stop at its third look."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.looks = 0
        self._stop = stop

    def read(self) -> Sequence[GpuLook]:
        self.looks += 1
        if self.looks == 3:
            self._stop()
        return [GpuLook(device="GPU-a", signals={"gpu_power_watts": float(self.looks)})]


def test_the_gpu_is_looked_at_while_a_page_does_not_come(folder: RunFolder) -> None:
    async def main(url: str) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        gpu = CountingGpu(lambda: loop.call_soon_threadsafe(stop.set) and None)
        plan = ScrapePlan(
            targets=(PageTarget(origin=parse_origin(url), engine="vllm"),),
            interval_s=0.05,
            open_gpus=lambda: gpu,
        )
        await collect(plan, folder.samples_writer("collector"), stop)

    with serving(lambda: None) as url:
        asyncio.run(main(url))
    seen = samples(folder)
    assert {sample.source for sample in seen} == {"gpu"}
    assert [sample.signals["gpu_power_watts"] for sample in seen][:2] == [1.0, 2.0]


def test_a_closed_standard_input_ends_the_process_with_its_rows_on_disk(folder: RunFolder) -> None:
    with serving() as url, collector(folder, url) as process:
        wait_for(lambda: len(samples(folder)) >= 5)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=END_S_MAX) == 0
    damage = Damage()
    seen = [sample for sample in samples(folder, damage) if sample.source == "engine"]
    assert damage == Damage()
    assert {sample.signals["running"] for sample in seen} == {46}
    assert [sample.at_ns for sample in seen] == sorted(sample.at_ns for sample in seen)
    gpu_gaps = [sample for sample in samples(folder) if sample.source == "gpu" and sample.gap]
    assert len(gpu_gaps) <= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_and_a_page_that_hangs_is_not_waited_for(
    folder: RunFolder, number: signal.Signals
) -> None:
    pages = iter([LOADED, LOADED])
    with serving(lambda: next(pages, None)) as url, collector(folder, url, "--gpu", "off") as process:
        wait_for(lambda: len(samples(folder)) == 2)
        process.send_signal(number)
        assert process.wait(timeout=END_S_MAX) == 0
    assert [sample.gap for sample in samples(folder)] == [None, None], "its time was never up"


def test_a_killed_collector_leaves_whole_rows(folder: RunFolder) -> None:
    with serving() as url, collector(folder, url) as process:
        wait_for(lambda: len(samples(folder)) >= 5)
        process.kill()
        process.wait()
    damage = Damage()
    assert len(samples(folder, damage)) >= 5
    assert damage.bad_lines == 0
    assert damage.torn_tails <= 1


def test_a_second_collector_of_a_run_writes_a_file_of_its_own(folder: RunFolder) -> None:
    with serving() as url:
        for _ in range(2):
            with collector(folder, url, "--gpu", "off") as process:
                before = len(samples(folder))
                wait_for(lambda: len(samples(folder)) > before)  # noqa: B023
                process.terminate()
                assert process.wait(timeout=END_S_MAX) == 0
    assert len(list((folder.root / "samples").iterdir())) == 2


def test_a_full_disk_ends_the_process_with_a_sentence(folder: RunFolder) -> None:
    limit = "import resource, signal, runpy; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
    limit += "runpy.run_module('loadtest.collector.scrape', run_name='__main__', alter_sys=True)"
    with serving() as url:
        done = subprocess.run(
            [
                *(sys.executable, "-c", limit, "--run-folder", str(folder.root), "--target", url),
                *("--engine", "vllm", "--interval-s", "0.05", "--gpu", "off"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            timeout=END_S_MAX,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("collector: cannot write ")
    assert "free space" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(samples(folder)) >= 1


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--run-folder", str(tmp_path), "--target", "http://127.0.0.1:1", "--engine", "vllm"])
    assert code == 2
    assert capsys.readouterr().err == f"collector: {tmp_path} is not a run folder: it has no manifest.json\n"


def test_a_target_with_a_password_is_refused_without_repeating_it(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    target = "http://user:hunter2@127.0.0.1:1"
    assert main(["--run-folder", str(folder.root), "--target", target, "--engine", "vllm"]) == 2
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "more", [("--metrics-path", "@elsewhere/"), ("--interval-s", "0"), ("--interval-s", "nan")]
)
def test_an_option_that_would_mislead_is_refused(folder: RunFolder, more: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--run-folder", str(folder.root), "--target", "http://127.0.0.1:1", "--engine", "vllm", *more])
    assert ended.value.code == 2
    assert not any((folder.root / "samples").iterdir())


def test_importing_the_collector_starts_nothing() -> None:
    code = "import threading, loadtest.collector.scrape as s; print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.strip() == "1"


HANGING_DRIVER = """
import asyncio, sys, threading
from pathlib import Path
from loadtest.collector import scrape
from loadtest.collector.page import PageTarget
from loadtest.origin import parse_origin
from loadtest.run_folder import RunFolder

plan = scrape.ScrapePlan(
    targets=(PageTarget(origin=parse_origin(sys.argv[2]), engine="vllm"),),
    interval_s=0.05,
    open_gpus=threading.Event().wait,
)
asyncio.run(scrape._run(plan, RunFolder.open(Path(sys.argv[1])).samples_writer("collector")))
"""


def test_a_driver_call_that_hangs_does_not_hold_the_process(folder: RunFolder) -> None:
    with (
        serving() as url,
        subprocess.Popen(
            [sys.executable, "-c", HANGING_DRIVER, str(folder.root), url], cwd=REPOSITORY
        ) as process,
    ):
        wait_for(lambda: len(samples(folder)) >= 2)
        process.terminate()
        assert process.wait(timeout=END_S_MAX) == 0
