"""The master's side of workers on other machines: compares their clocks with its own, has their rows fetched.

A worker that sees the master's run folder and shares its clock is none of those: it is met, and let in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import gevent
from gevent.event import Event as Gate
from gevent.queue import Queue

from estimator.errors import PlainError
from loadtest.clocks import CLOCK_ERROR_NS_MAX, Measured, Offset, Phase, Ping, offset_of
from loadtest.conductor.far.gather import ANSWER_S_MAX, NotGathered, fetch_all
from loadtest.conductor.far.meeting import Met, Token, own_version
from loadtest.conductor.far.messages import (
    KEPT,
    MEET,
    MET,
    PARCELS,
    PIECE,
    PING,
    PONG,
    TAKEN,
    Post,
    Stay,
    plain,
)
from loadtest.records import EventKind
from loadtest.run_folder import RunFolder, RunFolderError

Data = dict[str, str | int | float | bool | None]
PINGS_AT_REST: Final = 20
PINGS_A_NOTE: Final = 12
"""In the load: one event of the best of so many."""
PING_EVERY_S: Final = 5.0


class FarClock(PlainError):  # noqa: N818  (what is wrong)
    """A worker's clock cannot be compared closely enough for its rows to be of use."""


class OtherVersion(PlainError):  # noqa: N818  (what is wrong)
    """A worker's rows may have other fields than ours."""


@dataclass(slots=True, kw_only=True)
class Outpost:
    """One worker in one run: on another machine, as far as is known yet."""

    client_id: str
    worker: int
    met: Met
    before: Offset | None = None
    """What was taken off its rows; None: it was not let in yet."""
    shares_clock: bool = False
    phase: Phase = "before"
    pings: list[Ping] = field(default_factory=list)
    sent_ns: int = 0
    where: str | None = None
    is_measured: Gate = field(default_factory=Gate)
    inbox: Queue[tuple[str, dict[str, Any]]] = field(default_factory=Queue)

    @property
    def name(self) -> str:
        return f"w{self.worker:02d} on {self.met.host}"


class Outposts:
    """One a master. `admit` is called for every worker that may take part, near or far, once it is known."""

    def __init__(
        self,
        post: Post,
        admit: Callable[[str, Stay | None], None],
        refuse: Callable[[PlainError], None],
        note: Callable[[EventKind, Data], None],
    ) -> None:
        self._post = post
        self._admit = admit
        self._refuse = refuse
        self._note = note
        self._token: Token | None = None
        self._workers: dict[str, int] = {}
        self._far: dict[str, Outpost] = {}
        self._watch: gevent.Greenlet[..., None] | None = None
        post.register_message(MET, self._met)
        post.register_message(PONG, self._ponged)
        post.register_message(KEPT, self._kept)
        for answer in (PARCELS, PIECE):
            post.register_message(answer, self._answered)

    def begin(self, folder: RunFolder) -> None:
        """A run begins: workers are to be met again. Raises RunFolderError."""
        self._folder = folder
        try:
            self._token = Token(folder.root)
        except OSError as error:
            raise RunFolderError(f"cannot write into {folder.root}: {error.strerror}") from error
        self._workers, self._far = {}, {}
        self._watch = gevent.spawn(self._keep_comparing)

    def end(self) -> None:
        """The load is over, and its rows are gathered, or never will be."""
        if self._watch is not None:
            self._watch.kill()
        if self._token is not None:
            self._token.remove()
        self._token = self._watch = None
        self._far = {}

    def meet(self, client_id: str, worker: int) -> None:
        """Leads to `admit`, unless its clock cannot be compared."""
        far = self._far.get(client_id)
        if far is not None and far.before is not None:  # the same process, once more
            self._admit(client_id, self._stay(far))
        elif self._token is not None:
            self._workers[client_id] = worker
            self._say(MEET, client_id, self._token.question())

    def gather(self, whole: Collection[str]) -> list[NotGathered]:
        """Fetches the rows of all far workers; what could not be had, a sentence each.

        `whole`: the workers that are there and have written their last row.
        """
        let_in = [far for far in self._far.values() if far.before is not None]
        jobs = [gevent.spawn(self._bring, far, is_whole=far.client_id in whole) for far in let_in]
        gevent.joinall(jobs)
        return [job.value for job in jobs if job.value is not None]

    # what workers answer

    def _met(self, msg: Any, **_: Any) -> None:
        worker = self._workers.pop(msg.node_id, None)
        if worker is None or self._token is None:
            return
        met = self._token.met(msg.data)
        if met.version != own_version():
            self._refuse(
                OtherVersion(
                    f"w{worker:02d} on {met.host} runs Ullage {met.version or 'of no version'}, the master "
                    f"{own_version() or 'none'}: install the same on both"
                )
            )
            return
        far = self._far[msg.node_id] = Outpost(client_id=msg.node_id, worker=worker, met=met)
        self._ping(far)

    def _ponged(self, msg: Any, **_: Any) -> None:
        heard_ns = time.perf_counter_ns()
        far = self._far.get(msg.node_id)
        if far is None or not far.sent_ns or int(msg.data["sent_ns"]) != far.sent_ns:  # answered once each
            return
        far.pings.append(Ping(sent_ns=far.sent_ns, far_ns=int(msg.data["far_ns"]), heard_ns=heard_ns))
        far.sent_ns = 0
        if far.phase == "during":
            if len(far.pings) >= PINGS_A_NOTE:
                self._compared(far)
        elif len(far.pings) < PINGS_AT_REST:
            self._ping(far)
        else:
            self._compared(far)

    def _compared(self, far: Outpost) -> None:
        offset, phase, far.pings = offset_of(far.pings), far.phase, []
        if phase == "before":
            far.shares_clock = far.met.same_clock_name and offset.may_be_none
        if not far.shares_clock:
            one = Measured(worker=far.worker, host=far.met.host, phase=phase, offset=offset)
            self._note("clock", one.data())
        if phase == "after":
            far.is_measured.set()
        elif phase == "before":
            self._judge(far, offset)

    def _judge(self, far: Outpost, offset: Offset) -> None:
        """Lets the worker in: beside us, where it sees our folder and shares our clock."""
        if far.shares_clock and far.met.sees_folder:
            del self._far[far.client_id]
            self._admit(far.client_id, None)
        elif not far.shares_clock and offset.uncertainty_ns > CLOCK_ERROR_NS_MAX:
            self._refuse(
                FarClock(
                    f"the clock of {far.name} can be compared to {offset.uncertainty_ns / 1e6:.1f} ms only, "
                    f"and rows need {CLOCK_ERROR_NS_MAX / 1e6:.0f} ms: start that worker nearer to the master"
                )
            )
        else:
            far.before = Offset(offset_ns=0, uncertainty_ns=0) if far.shares_clock else offset
            far.phase = "during"
            self._admit(far.client_id, self._stay(far))

    def _kept(self, msg: Any, **_: Any) -> None:
        far = self._far.get(msg.node_id)
        if far is not None:
            far.where = plain(msg.data["path"])
            text = f"{far.name} keeps its rows in {far.where} until they are gathered"
            self._note("note", {"text": text})

    def _answered(self, msg: Any, **_: Any) -> None:
        far = self._far.get(msg.node_id)
        if far is not None:
            far.inbox.put((msg.type, msg.data))

    # what is done with them

    def compare(self) -> None:
        """Another ping to each worker whose clock is not ours, while the load goes on."""
        for far in list(self._far.values()):
            if far.phase == "during" and not far.shares_clock:
                self._ping(far)

    def _keep_comparing(self) -> None:
        while True:
            gevent.sleep(PING_EVERY_S)
            self.compare()

    def _bring(self, far: Outpost, *, is_whole: bool) -> NotGathered | None:
        """All files of one worker; only when all are here, it is told so."""
        try:
            if not is_whole:
                raise NotGathered("it ended before the run did")
            if not far.shares_clock:
                far.phase, far.pings = "after", []
                self._ping(far)
                if not far.is_measured.wait(ANSWER_S_MAX):
                    raise NotGathered("it does not answer")
            self._note("gathered", fetch_all(partial(self._ask, far), self._folder, far.worker))
            self._say(TAKEN, far.client_id, {})
        except (PlainError, OSError, KeyError, TypeError, ValueError) as error:
            place = "on its machine" if far.where is None else f"in {far.where} there"
            return NotGathered(f"the rows of {far.name} did not come here ({error}): they are kept {place}")
        return None

    def _ask(
        self, far: Outpost, message: str, data: dict[str, Any], answer: str, within_s: float
    ) -> dict[str, Any]:
        """Raises NotGathered."""
        self._say(message, far.client_id, data)
        with gevent.Timeout(within_s, NotGathered(f"it did not answer within {within_s:g} s")):
            while True:
                kind, said = far.inbox.get()
                if kind == answer:
                    return dict(said)

    def _stay(self, far: Outpost) -> Stay:
        assert far.before is not None
        return Stay(
            run_id=self._folder.run_id,
            manifest=self._folder.manifest_text(),
            clock_ahead_ns=far.before.offset_ns,
        )

    def _ping(self, far: Outpost) -> None:
        far.sent_ns = time.perf_counter_ns()
        self._say(PING, far.client_id, {"sent_ns": far.sent_ns})

    def _say(self, message: str, client_id: str, data: dict[str, Any]) -> None:
        self._post.send_message(message, data, client_id=client_id)
