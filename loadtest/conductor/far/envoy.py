"""A worker on another machine than its master: answers for its clock, keeps its rows until they are sent."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gevent import subprocess
from locust.runners import WorkerRunner

from estimator.errors import PlainError
from loadtest.conductor.far.meeting import answer
from loadtest.conductor.far.messages import (
    ASK,
    FETCH,
    KEPT,
    MEET,
    MET,
    PARCELS,
    PIECE,
    PING,
    PONG,
    TAKEN,
    Stay,
)
from loadtest.conductor.far.parcels import parcel, piece
from loadtest.run_folder import RUN_ID, RunFolder, RunFolderError


def kept_roots(environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Where rows wait to be sent, the best place first: the user's folder of state, else that of drafts."""
    state = environ.get("XDG_STATE_HOME")
    home = Path(state) if state else Path.home() / ".local" / "state"
    return home / "ullage" / "far", Path(tempfile.gettempdir()) / f"ullage-far-{os.getuid()}"


def keep(stay: Stay, worker: int, roots: tuple[Path, ...]) -> RunFolder:
    """A run folder of this worker's own. Raises RunFolderError when it can be made nowhere."""
    if not RUN_ID.fullmatch(stay.run_id):
        raise RunFolderError("the master named a run that cannot be one")
    reasons = []
    for root in roots:
        try:
            folder = RunFolder.create(root / stay.run_id, f"w{worker:02d}-{secrets.token_hex(4)}")
        except RunFolderError as error:
            reasons.append(str(error))
        else:
            folder.put_manifest(stay.manifest)
            return folder
    raise RunFolderError("; ".join(reasons) + ": set XDG_STATE_HOME to a folder that can be written")


def dated_by(stay: Stay) -> Callable[[], int]:
    """The master's clock, as far as it is known here."""
    ahead_ns, clock = stay.clock_ahead_ns, time.perf_counter_ns
    return clock if not ahead_ns else lambda: clock() - ahead_ns


class Envoy:
    """One a worker process."""

    def __init__(self, runner: WorkerRunner) -> None:
        self._runner = runner
        self._kept: RunFolder | None = None
        self._worker = 0
        runner.register_message(MEET, lambda msg, **_: runner.send_message(MET, answer(msg.data)))
        runner.register_message(PING, self._pong)
        runner.register_message(ASK, self._list, concurrent=True)  # sealing takes seconds
        runner.register_message(FETCH, self._send)
        runner.register_message(TAKEN, self._taken)
        runner.environment.events.quitting.add_listener(self._quitting)  # type: ignore[no-untyped-call]

    def settle(self, stay: Stay, worker: int) -> Path:
        """Where this worker writes its rows. Raises RunFolderError."""
        if self._kept is None or self._kept.root.parent.name != stay.run_id:
            self._tell_kept()
            self._kept, self._worker = keep(stay, worker, kept_roots()), worker
        self._runner.send_message(KEPT, {"path": str(self._kept.root)})
        return self._kept.root

    def _pong(self, msg: Any, **_: Any) -> None:
        far_ns = time.perf_counter_ns()
        self._runner.send_message(PONG, {"sent_ns": msg.data["sent_ns"], "far_ns": far_ns})

    def _list(self, **_: Any) -> None:
        said: dict[str, Any]
        try:
            folder = self._folder()
            # what it cannot seal is sent as text, which is only longer
            texts = [str(text) for text in folder.text_segments()]
            subprocess.run([sys.executable, "-m", "loadtest.seal", *texts], check=False)
            said = {"parcels": [parcel(folder.root, name).message() for name in folder.parts(self._worker)]}
        except (PlainError, OSError) as error:
            said = {"error": str(error)}
        self._runner.send_message(PARCELS, said)

    def _send(self, msg: Any, **_: Any) -> None:
        name, start = str(msg.data["name"]), int(msg.data["start"])
        said: dict[str, Any]
        try:
            said = {"start": start, "data": piece(self._folder().part_path(name, self._worker), start)}
        except (PlainError, OSError) as error:
            said = {"error": str(error)}
        self._runner.send_message(PIECE, said)

    def _taken(self, **_: Any) -> None:
        if self._kept is not None:
            kept, self._kept = self._kept.root, None
            shutil.rmtree(kept, ignore_errors=True)
            if not any(kept.parent.iterdir()):
                kept.parent.rmdir()

    def _folder(self) -> RunFolder:
        if self._kept is None:
            raise RunFolderError("it keeps no rows of a run")
        return self._kept

    def _quitting(self, **_: Any) -> None:
        self._tell_kept()

    def _tell_kept(self) -> None:
        if self._kept is not None:
            print(
                f"ullage: the master has not taken the rows of w{self._worker:02d}: they are kept in "
                f"{self._kept.root}",
                file=sys.stderr,
                flush=True,
            )
