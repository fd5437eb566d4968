"""A worker on another machine than its master: answers for its clock, keeps its rows until they are sent."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from gevent import subprocess

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
    Post,
    Stay,
)
from loadtest.conductor.far.parcels import parcel, piece
from loadtest.run_folder import RUN_ID, RunFolder, RunFolderError

SEAL_FROM_BYTES: Final = 1 << 20
"""Less text than this is sent sooner than it is sealed."""


def kept_roots(environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Where rows wait to be sent, the best place first: the user's folder of state, else that of drafts."""
    drafts = Path(tempfile.gettempdir()) / f"ullage-far-{os.getuid()}"
    state, home = environ.get("XDG_STATE_HOME"), environ.get("HOME")
    if not state and not home:  # a container's user may have none
        return (drafts,)
    return (Path(state) if state else Path(str(home)) / ".local" / "state") / "ullage" / "far", drafts


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

    def __init__(self, post: Post, roots: tuple[Path, ...] | None = None) -> None:
        self._post = post
        self._roots = kept_roots() if roots is None else roots
        self._kept: RunFolder | None = None
        self._worker = 0
        post.register_message(MEET, lambda msg, **_: post.send_message(MET, answer(msg.data)))
        post.register_message(PING, self._pong)
        post.register_message(ASK, self.list_parcels, concurrent=True)  # sealing takes seconds
        post.register_message(FETCH, self._send)
        post.register_message(TAKEN, self._taken)

    def settle(self, stay: Stay, worker: int) -> Path:
        """Where this worker writes its rows. Raises RunFolderError."""
        if self._kept is None or self._kept.root.parent.name != stay.run_id:
            self.tell_kept()
            self._kept, self._worker = keep(stay, worker, self._roots), worker
        self._post.send_message(KEPT, {"path": str(self._kept.root)})
        return self._kept.root

    def _pong(self, msg: Any, **_: Any) -> None:
        far_ns = time.perf_counter_ns()
        self._post.send_message(PONG, {"sent_ns": msg.data["sent_ns"], "far_ns": far_ns})

    def list_parcels(self, **_: Any) -> None:
        """Seals the rows, if they are many, and says what there is to fetch."""
        said: dict[str, Any]
        try:
            folder = self._folder()
            texts = folder.text_segments()
            if sum(text.stat().st_size for text in texts) >= SEAL_FROM_BYTES:
                # what it cannot seal is sent as text, which is only longer
                command = [sys.executable, "-m", "loadtest.seal", *map(str, texts)]
                subprocess.run(command, check=False)
            said = {"parcels": [parcel(folder.root, name).message() for name in folder.parts(self._worker)]}
        except (PlainError, OSError) as error:
            said = {"error": str(error)}
        self._post.send_message(PARCELS, said)

    def _send(self, msg: Any, **_: Any) -> None:
        name, start = str(msg.data["name"]), int(msg.data["start"])
        said: dict[str, Any]
        try:
            said = {"start": start, "data": piece(self._folder().part_path(name, self._worker), start)}
        except (PlainError, OSError) as error:
            said = {"error": str(error)}
        self._post.send_message(PIECE, said)

    def _taken(self, **_: Any) -> None:
        if self._kept is not None:
            kept, self._kept = self._kept.root, None
            shutil.rmtree(kept, ignore_errors=True)
            with contextlib.suppress(OSError):  # another worker's rows are there
                kept.parent.rmdir()

    def _folder(self) -> RunFolder:
        if self._kept is None:
            raise RunFolderError("it keeps no rows of a run")
        return self._kept

    def tell_kept(self) -> None:
        """Before this process ends: where the rows are that nobody has taken."""
        if self._kept is not None:
            print(
                f"ullage: the master has not taken the rows of w{self._worker:02d}: they are kept in "
                f"{self._kept.root}",
                file=sys.stderr,
                flush=True,
            )
