"""Master and far worker over messages that a test carries: who is let in, what is fetched, what is said."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from killed_writers import row_of

from estimator.errors import PlainError
from loadtest.clocks import CLOCK_ERROR_NS_MAX
from loadtest.conductor.far import envoy
from loadtest.conductor.far.envoy import Envoy, dated_by, keep
from loadtest.conductor.far.meeting import answer, clock_name
from loadtest.conductor.far.messages import (
    ASK,
    FETCH,
    MEET,
    MET,
    PARCELS,
    PIECE,
    PING,
    PONG,
    TAKEN,
    Stay,
)
from loadtest.conductor.far.outposts import PINGS_A_NOTE, Outposts
from loadtest.results import load_results
from loadtest.run_folder import RunFolder, RunFolderError

AHEAD_NS = 5 * 10**9
WORKER = "loader-2_4f"


class Wire:
    """Carries messages between a master and one worker at once; `tamper` may change what the worker says."""

    def __init__(self) -> None:
        self.master: dict[str, Callable[..., None]] = {}
        self.worker: dict[str, Callable[..., None]] = {}
        self.tamper: Callable[[str, Any], Any] = lambda _, data: data
        self.said: list[str] = []

    def register_message(
        self, msg_type: str, listener: Callable[..., None], concurrent: bool = False
    ) -> None:
        self.master[msg_type] = listener

    def send_message(self, msg_type: str, data: Any = None, client_id: str | None = None) -> None:
        self.said.append(msg_type)
        self._carry(self.worker, msg_type, data)

    def _carry(self, side: Mapping[str, Callable[..., None]], msg_type: str, data: Any) -> None:
        if msg_type in side:
            side[msg_type](msg=SimpleNamespace(type=msg_type, data=data, node_id=WORKER))


@dataclass(slots=True)
class WorkerEnd:
    """The worker's end of a wire."""

    wire: Wire

    def register_message(
        self, msg_type: str, listener: Callable[..., None], concurrent: bool = False
    ) -> None:
        self.wire.worker[msg_type] = listener

    def send_message(self, msg_type: str, data: Any = None, client_id: str | None = None) -> None:
        self.wire._carry(self.wire.master, msg_type, self.wire.tamper(msg_type, data))


@dataclass(slots=True)
class Master:
    """A master's outposts, and everything that came of them."""

    folder: RunFolder
    wire: Wire = field(default_factory=Wire)
    admitted: list[Stay | None] = field(default_factory=list)
    refused: list[PlainError] = field(default_factory=list)
    notes: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    outposts: Outposts = field(init=False)

    def __post_init__(self) -> None:
        self.outposts = Outposts(
            self.wire,
            lambda _, stay: self.admitted.append(stay),
            self.refused.append,
            lambda event, data: self.notes.append((event, data)),
        )

    def meets(self, worker: Callable[[Wire], object]) -> None:
        worker(self.wire)
        self.outposts.begin(self.folder)
        self.outposts.meet(WORKER, 1)


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    folder = RunFolder.create(tmp_path / "runs", "run-1")
    folder.put_manifest("{}")
    one = Master(folder)
    yield one
    one.outposts.end()
    assert not (folder.root / "crew.token").exists()


def a_worker(wire: Wire, *, ahead_ns: int = 0, late_ns: int = 0, **says: Any) -> None:
    """One whose clock is ahead, whose answers to pings take so long, and that says so of itself."""
    end = WorkerEnd(wire)

    def pong(msg: Any) -> None:
        until_ns = time.perf_counter_ns() + late_ns
        while time.perf_counter_ns() < until_ns:
            pass
        end.send_message(PONG, {"sent_ns": msg.data["sent_ns"], "far_ns": time.perf_counter_ns() + ahead_ns})

    end.register_message(MEET, lambda msg: end.send_message(MET, {**answer(msg.data), **says}))
    end.register_message(PING, pong)


def test_a_worker_beside_its_master_is_let_in_and_leaves_no_trace(master: Master) -> None:
    master.meets(a_worker)
    assert master.admitted == [None]
    assert master.notes == []
    assert master.outposts.gather({WORKER}) == []


@pytest.mark.parametrize(
    ("says", "ahead_ns", "noted"),
    [
        ({"secret": "guessed"}, 0, []),
        ({"secret": None}, 0, []),
        ({"clock": "another machine's"}, AHEAD_NS, ["clock"]),
        ({}, AHEAD_NS, ["clock"]),  # a machine that was copied while it ran: one name, two clocks
    ],
)
def test_a_worker_is_elsewhere_that_cannot_prove_the_contrary(
    master: Master, says: dict[str, Any], ahead_ns: int, noted: list[str]
) -> None:
    master.meets(lambda wire: a_worker(wire, ahead_ns=ahead_ns, **says))
    (stay,) = master.admitted
    assert stay is not None
    assert stay.run_id == "run-1"
    assert abs(stay.clock_ahead_ns - ahead_ns) < CLOCK_ERROR_NS_MAX
    assert bool(stay.clock_ahead_ns) == bool(ahead_ns), "one clock is off by nothing"
    assert [event for event, _ in master.notes] == noted
    assert abs(dated_by(stay)() + ahead_ns - time.perf_counter_ns()) < CLOCK_ERROR_NS_MAX


def test_a_clock_that_cannot_be_compared_closely_is_refused_before_the_load(master: Master) -> None:
    far = {"ahead_ns": AHEAD_NS, "late_ns": 3 * CLOCK_ERROR_NS_MAX, "host": "loader-2"}
    master.meets(lambda wire: a_worker(wire, **far))
    assert master.admitted == []
    (refusal,) = master.refused
    assert "w01 on loader-2" in str(refusal)
    assert refusal.exit_code == 2


def test_what_a_worker_calls_itself_cannot_write_on_a_terminal(master: Master) -> None:
    master.meets(lambda wire: a_worker(wire, ahead_ns=AHEAD_NS, host="evil\x1b[2J\nhost" + "x" * 900))
    (_, clock) = master.notes[0]
    assert clock["host"].startswith("evil[2Jhostxx")
    assert len(clock["host"]) <= 500


def test_a_worker_of_another_version_is_refused(master: Master) -> None:
    master.meets(lambda wire: a_worker(wire, host="loader-2", version="0.0.9"))
    assert master.admitted == []
    (refusal,) = master.refused
    assert "w01 on loader-2 runs Ullage 0.0.9" in str(refusal)


def test_clocks_are_compared_on_in_the_load_and_the_best_of_a_minute_is_a_row(master: Master) -> None:
    master.meets(lambda wire: a_worker(wire, ahead_ns=AHEAD_NS))
    for _ in range(2 * PINGS_A_NOTE - 1):
        master.outposts.compare()
    assert [data["phase"] for _, data in master.notes] == ["before", "during"]
    assert abs(master.notes[-1][1]["offset_ns"] - AHEAD_NS) < CLOCK_ERROR_NS_MAX


def test_an_answer_nobody_asked_for_moves_no_clock(master: Master) -> None:
    def liar(wire: Wire) -> None:
        a_worker(wire, ahead_ns=AHEAD_NS)
        honest = wire.worker[PING]

        def pong(msg: Any) -> None:
            WorkerEnd(wire).send_message(PONG, {"sent_ns": msg.data["sent_ns"] - 10**12, "far_ns": 0})
            honest(msg)

        wire.worker[PING] = pong

    master.meets(liar)
    (stay,) = master.admitted
    assert stay is not None
    assert abs(stay.clock_ahead_ns - AHEAD_NS) < CLOCK_ERROR_NS_MAX


@dataclass(slots=True)
class Far:
    """A real envoy, met as one that sees no folder, with rows written."""

    kept: RunFolder
    envoy: Envoy


@pytest.fixture
def far(master: Master, tmp_path: Path) -> Far:
    end = WorkerEnd(master.wire)

    def sees_nothing(kind: str, data: Any) -> Any:
        return {**data, "secret": None} if kind == MET else data

    master.wire.tamper = sees_nothing
    worker = Envoy(end, roots=(tmp_path / "kept",))
    master.wire.worker[ASK] = lambda **said: gevent.spawn(worker.list_parcels, **said)
    master.meets(lambda _: None)
    (stay,) = master.admitted
    assert stay is not None
    kept = RunFolder(worker.settle(stay, 1))
    for writer, rows in (
        (kept.records_writer(1), [row_of(number) for number in range(40)]),
        (kept.samples_writer("client-w01"), []),
    ):
        for row in rows:
            writer.append(row)
        writer.close()
    return Far(kept, worker)


@pytest.mark.parametrize(("more_rows", "suffix"), [(0, ".jsonl"), (2_000, ".npz")])
def test_rows_are_fetched_sealed_if_they_are_many_and_only_then_let_go(
    master: Master, far: Far, more_rows: int, suffix: str
) -> None:
    with contextlib.closing(far.kept.records_writer(1)) as writer:
        for number in range(40, 40 + more_rows):
            writer.append(row_of(number))
    mine = list(load_results(far.kept).requests)
    assert len(mine) == (40 + more_rows) // 2
    assert master.outposts.gather({WORKER}) == []
    assert list(load_results(master.folder).requests) == mine
    assert {path.suffix for path in (master.folder.root / "records").iterdir()} == {suffix}
    assert not far.kept.root.parent.exists()
    assert master.notes[-1][0] == "gathered"


def test_a_worker_that_ended_before_is_not_asked_and_its_rows_are_named(master: Master, far: Far) -> None:
    (lost,) = master.outposts.gather(set())
    assert str(far.kept.root) in str(lost)
    assert ASK not in master.wire.said
    assert lost.exit_code == 5


def flipped(kind: str, data: Any) -> Any:
    return {**data, "data": bytes(len(data["data"]))} if kind == PIECE else data


def elsewhere(kind: str, data: Any) -> Any:
    if kind != PARCELS:
        return data
    return {"parcels": [{**one, "name": "../../manifest.json"} for one in data["parcels"]]}


def of_another(kind: str, data: Any) -> Any:
    if kind != PARCELS:
        return data
    return {"parcels": [{**one, "name": "records/w00-000.jsonl"} for one in data["parcels"]]}


def no_list(kind: str, data: Any) -> Any:
    return {} if kind == PARCELS else data


def failing(kind: str, data: Any) -> Any:
    return {"error": "Input/output error"} if kind == PIECE else data


@pytest.mark.parametrize("tamper", [flipped, elsewhere, of_another, no_list, failing])
def test_what_does_not_arrive_whole_stays_where_it_was(
    master: Master, far: Far, tamper: Callable[[str, Any], Any]
) -> None:
    master.wire.tamper = tamper
    (lost,) = master.outposts.gather({WORKER})
    assert f"kept in {far.kept.root}" in str(lost)
    assert TAKEN not in master.wire.said
    assert len(load_results(far.kept).requests) == 20
    assert not list((master.folder.root / "records").iterdir())


def test_a_process_that_ends_with_rows_says_where_they_are(
    far: Far, master: Master, capsys: pytest.CaptureFixture[str]
) -> None:
    far.envoy.tell_kept()
    assert str(far.kept.root) in capsys.readouterr().err
    assert master.outposts.gather({WORKER}) == []
    far.envoy.tell_kept()
    assert capsys.readouterr().err == ""


def test_nothing_is_fetched_of_a_worker_but_its_rows(far: Far, master: Master) -> None:
    answers: list[Any] = []
    master.wire.master[PIECE] = lambda msg: answers.append(msg.data)
    for name in ("manifest.json", "../../../etc/passwd", "records/w00-000.jsonl"):
        master.wire.send_message(FETCH, {"name": name, "start": 0})
    assert [set(said) for said in answers] == [{"error"}] * 3


def test_rows_are_kept_where_something_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stay = Stay(run_id="run-1", manifest="{}", clock_ahead_ns=0)
    roots = (tmp_path / "file", tmp_path / "good")
    assert keep(stay, 1, roots).root.parent == tmp_path / "good" / "run-1"
    with pytest.raises(RunFolderError, match="XDG_STATE_HOME"):
        keep(stay, 1, roots[:1])
    with pytest.raises(RunFolderError, match="cannot be one"):
        keep(Stay(run_id="../run", manifest="{}", clock_ahead_ns=0), 1, roots)


def test_rows_wait_in_the_users_folder_of_state() -> None:
    assert envoy.kept_roots({"XDG_STATE_HOME": "/state", "HOME": "/home/me"})[0] == Path("/state/ullage/far")
    assert envoy.kept_roots({"HOME": "/home/me"})[0] == Path("/home/me/.local/state/ullage/far")
    assert len(envoy.kept_roots({})) == 1, "a container's user may have no home"


def test_a_clock_has_one_name_and_no_other_file_is_read_for_a_master(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hidden")
    said = answer({"path": str(tmp_path / "key")})
    assert said["secret"] is None
    assert said["clock"] == clock_name()
