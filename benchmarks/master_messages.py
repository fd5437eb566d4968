"""What workers and users cost the master: its processor time for a message, and for dealing out users.

python benchmarks/master_messages.py
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from locust import User
from locust.dispatch import UsersDispatcher
from locust.env import Environment
from locust.event import Events
from locust.rpc.protocol import Message
from locust.runners import WorkerNode
from locust.stats import setup_distributed_stats_event_listeners

from loadtest.conductor.far.messages import PIECE
from loadtest.conductor.far.parcels import PIECE_BYTES, Joiner, parcel, piece

SEALED_ROW_BYTES = 34
"""By rows.py."""
REPORT_S = 3.0
"""Locust's workers report that often, and send a heartbeat each second."""
LINES = ("POST", "TTFT")
REPEATS = 2000


def report(requests: int, seed: int = 1) -> dict[str, object]:
    """A worker's table after `requests` answers in one interval, as Locust makes it."""
    worker = Environment(events=Events())
    runner = worker.create_local_runner()
    setup_distributed_stats_event_listeners(worker.events, runner.stats)
    draw = random.Random(seed)
    for _ in range(requests):
        for line in LINES:
            runner.stats.log_request(line, "/v1/chat/completions", draw.lognormvariate(7.5, 0.6), 200)
    data: dict[str, object] = {"user_count": 250, "user_classes_count": {"QwenUser": 250}}
    worker.events.report_to_master.fire(client_id="host_0123456789abcdef", data=data)
    return data


def cost_s(act: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    started = time.process_time()
    for _ in range(REPEATS):
        act()
    return (time.process_time() - started) / REPEATS


def dealt_s(users: int, workers: int) -> float:
    """Processor seconds until the master knows which of `users`, started at once, go to which worker."""
    dispatcher = UsersDispatcher([WorkerNode(str(number)) for number in range(workers)], [User])
    started = time.process_time()
    dispatcher.new_dispatch(users, users)
    for _ in dispatcher:
        pass
    return time.process_time() - started


def gathered_s(rows: int) -> tuple[int, float]:
    """Bytes of the sealed rows of a worker elsewhere, and the master's processor seconds to take them."""
    with tempfile.TemporaryDirectory() as home:
        root, name = Path(home), "records/w01-000.00000000.npz"
        (root / "records").mkdir()
        (root / name).write_bytes(random.Random(1).randbytes(rows * SEALED_ROW_BYTES))
        there = parcel(root, name)
        pieces = []
        for start in range(0, there.size_bytes, PIECE_BYTES):
            data = {"start": start, "data": piece(root / name, start)}
            pieces.append(Message(PIECE, data, "host_0123456789abcdef").serialize())
        started = time.process_time()
        with Joiner(there, root / "here.npz") as joiner:
            for said in pieces:
                message = Message.unserialize(said)
                joiner.take(message.data["start"], message.data["data"])
            joiner.finish()
        return sum(map(len, pieces)), time.process_time() - started


def main() -> None:
    master = Environment(events=Events())
    setup_distributed_stats_event_listeners(master.events, master.create_local_runner().stats)
    beat = Message(
        "heartbeat", {"state": "running", "current_cpu_usage": 35.0, "current_memory_usage": 9e7}, "w"
    )
    beat_bytes = beat.serialize()
    beat_s = cost_s(lambda: Message.unserialize(beat_bytes))
    print(f"heartbeat: {len(beat_bytes)} bytes, {beat_s * 1e6:.0f} us")
    for requests in (10, 100, 1000):
        data = Message("stats", report(requests), "host_0123456789abcdef").serialize()

        def take(data: bytes = data) -> None:
            message = Message.unserialize(data)
            master.events.worker_report.fire(client_id="w", data=message.data)

        print(f"report of {requests:,} requests: {len(data):,} bytes, {cost_s(take) * 1e6:.0f} us")
    for users, workers in ((10_000, 20), (100_000, 200), (1_000_000, 2_000)):
        print(f"{users:,} users to {workers:,} workers: {dealt_s(users, workers):.2f} s")
    size, took_s = gathered_s(1_000_000)
    print(f"gathering a million rows: {size / 1e6:.1f} MB, {took_s:.2f} s")


if __name__ == "__main__":
    main()
