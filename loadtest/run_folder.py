"""The only code that knows the file names in runs/<id>/."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from estimator import whole_file
from estimator.capacity import Prediction
from estimator.errors import PlainError
from loadtest.access import USERS_CAP, Access
from loadtest.audit import Check
from loadtest.earlier_part import EarlierPart
from loadtest.named_server import NamedServer
from loadtest.origin import Origin, parse_origin
from loadtest.records import Row, StreamCounts
from loadtest.row_file import Damage, RowWriter, is_locked, read_rows
from loadtest.search_result import SearchResult
from loadtest.segments import SEALED_SUFFIX, SegmentWriter, next_path
from loadtest.telemetry import Telemetry
from loadtest.textbook_facts import TextbookFacts

FORMAT: Final = 1
RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PART: Final = re.compile(
    r"(?:(?:records|streams)/|samples/client-)w(?P<worker>\d{2,})-\d{3,}\.(?:jsonl|[0-9a-f]{8}\.npz)"
)
"""What a load process writes: its rows, its counts of streams, its samples of itself."""
T = TypeVar("T")
RunState = Literal["running", "complete", "interrupted"]


class RunFolderError(PlainError):
    """The run folder cannot be used: the message is one sentence that names the path and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One step of the load: hold `users` for `hold_s` seconds, the first `settle_s` of them not judged.

    Of a search `hold_s` is the most it may be, and `settle_s` is None: an event says when it has settled.
    """

    index: int
    label: str
    users: int
    hold_s: float
    settle_s: float | None
    spawn_rate_per_s: float
    rate_per_s: float | None = None
    """Open loop: requests begin at this rate, and `users` is how many may be in flight; None: closed loop."""

    @property
    def is_dip(self) -> bool:
        """Nobody asks anything; it lasts from the last answer on."""
        return self.users == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a reader needs to repeat or judge a run; replaced atomically, never edited in place.

    `wall_ns` and `mono_ns` were read together: they tie the rows' monotonic clock to Unix time. `host` is
    an origin without user information; `server` holds the engine's own cache settings as it shows them.
    """

    run_id: str
    created_utc: str
    wall_ns: int
    mono_ns: int
    versions: Mapping[str, str]
    host: str
    engine: Literal["vllm", "lmdeploy"]
    model: str
    scenario: Mapping[str, Any]
    stages: tuple[PlannedStage, ...]
    server: Mapping[str, str]
    state: RunState = "running"
    format: int = FORMAT
    access: Access = field(default_factory=Access)
    users_cap: int = USERS_CAP
    audit: tuple[Check, ...] = ()
    """What the audit before the load found; empty when it was left out."""
    telemetry: Telemetry = field(default_factory=Telemetry)
    """Where server and GPUs are watched."""
    textbook: TextbookFacts | None = None
    """What the textbook and the ledger said; None where no model and GPU were named."""
    named: NamedServer | None = None
    """What the server was started as, in a person's words; None where nobody said."""
    processes: int = 1
    """Load processes that were asked for."""
    signed_by: str | None = None
    """Of a soak: the run whose signed number it holds; None where a person gave the number."""
    parts: tuple[EarlierPart, ...] = ()
    """The runs that this one continues, in order of time; none of a run that began afresh."""

    @property
    def stages_held(self) -> int:
        """Stages or levels that earlier parts have held: the load begins after them."""
        return self.parts[-1].stages_held if self.parts else 0

    @property
    def first_worker(self) -> int:
        """The number of the first load process: those below were of earlier parts."""
        return self.parts[-1].load_processes if self.parts else 0

    @property
    def is_soak(self) -> bool:
        """A load with dips: it is asked whether the server drifts, not how much it carries."""
        return any(stage.is_dip for stage in self.stages)

    @property
    def origin(self) -> Origin:
        """The server, and how it may be reached: the same in every process of the run."""
        return parse_origin(self.host, self.access)


class RunFolder:
    """runs/<id>/: create it once, open it anywhere."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, runs_root: Path, run_id: str) -> RunFolder:
        if not RUN_ID.fullmatch(run_id):
            raise RunFolderError(f"run id {run_id!r} may hold only letters, digits, '.', '_' and '-'")
        folder = cls(runs_root / run_id)
        try:
            runs_root.mkdir(parents=True, exist_ok=True)
            folder.root.mkdir(mode=0o700)
            (folder.root / "records").mkdir(mode=0o700)
            (folder.root / "samples").mkdir(mode=0o700)
        except OSError as error:
            raise RunFolderError(f"cannot create run folder {folder.root}: {error.strerror}") from error
        return folder

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        folder = cls(root)
        if not folder._manifest_path.is_file():
            raise RunFolderError(f"{root} is not a run folder: it has no manifest.json")
        return folder

    @property
    def run_id(self) -> str:
        return self.root.name

    @property
    def _manifest_path(self) -> Path:
        return self.root / "manifest.json"

    @property
    def _prediction_path(self) -> Path:
        return self.root / "prediction.json"

    @property
    def _search_path(self) -> Path:
        return self.root / "search.json"

    @property
    def events_path(self) -> Path:
        return self.root / "events.jsonl"

    def report_path(self, suffix: str) -> Path:
        """Where the report goes: suffix is html, md or json."""
        return self.root / f"report.{suffix}"

    def rules_path(self, name: Literal["rules", "rules_test"]) -> Path:
        """Prometheus rules of the signed number, and promtool's tests of them."""
        return self.root / f"{name}.yml"

    def log_path(self, name: str) -> Path:
        """Where a process of this run writes what it has to say: locust, twin, collector."""
        return self.root / f"{name}.log"

    def records_writer(self, worker: int) -> RowWriter:
        return SegmentWriter(self._records, f"w{worker:02d}")

    def streams_writer(self, worker: int) -> RowWriter:
        return RowWriter(next_path(self.root / "streams", f"w{worker:02d}"))

    def samples_writer(self, name: str) -> RowWriter:
        return RowWriter(next_path(self.root / "samples", name))

    def carried_path(self, kind: Literal["records", "streams", "samples", "events"]) -> Path:
        """Where rows of earlier parts go on their way in: text, which of `records` is then sealed."""
        folder = self.root if kind == "events" else self.root / kind
        return next_path(folder, "events-before" if kind == "events" else "before")

    def is_at_work(self) -> bool:
        """Does a process still write rows here? The kernel ends its locks with it."""
        files = [self.events_path, *self.text_segments(), *self.sample_files()]
        return any(map(is_locked, files))

    def collector_samples(self) -> Path:
        """What the collector writes; there once it runs."""
        return self.root / "samples" / "collector-000.jsonl"

    def sample_files(self) -> list[Path]:
        """What collector and load processes have written so far."""
        return sorted(self.root.glob("samples/*.jsonl"))

    def events_writer(self) -> RowWriter:
        return RowWriter(self.events_path)

    @property
    def _records(self) -> Path:
        return self.root / "records"

    def text_segments(self) -> list[Path]:
        """Segments of requests as they were written: not sealed yet, or kept because of damaged lines."""
        return sorted(self._records.glob("*.jsonl"))

    def sealed_segments(self) -> list[Path]:
        return sorted(self._records.glob(f"*{SEALED_SUFFIX}"))

    def write_manifest(self, manifest: Manifest) -> None:
        replace_file(self._manifest_path, _to_json(manifest))

    def read_manifest(self) -> Manifest:
        return _from_json(TypeAdapter(Manifest), self._manifest_path)

    def manifest_text(self) -> str:
        """For a worker that cannot read this folder."""
        return self._manifest_path.read_text(encoding="utf-8")

    def put_manifest(self, text: str) -> None:
        """As the master's folder has it. Raises RunFolderError."""
        replace_file(self._manifest_path, text)

    def parts(self, worker: int) -> list[str]:
        """The files that this load process has written here, by their paths inside the folder."""
        files = (path.relative_to(self.root).as_posix() for path in self.root.glob("*/*"))
        return sorted(name for name in files if _is_part(name, worker))

    def part_path(self, name: str, worker: int) -> Path:
        """Of such a file; the name may come from another machine. Raises RunFolderError for any other."""
        if not _is_part(name, worker):
            raise RunFolderError(f"{name!r} is no file of load process {worker}")
        return self.root / name

    def write_prediction(self, prediction: Prediction) -> None:
        replace_file(self._prediction_path, _to_json(prediction))

    def read_prediction(self) -> Prediction | None:
        if not self._prediction_path.is_file():
            return None
        return _from_json(TypeAdapter(Prediction), self._prediction_path)

    def write_search(self, found: SearchResult) -> None:
        replace_file(self._search_path, _to_json(found))

    def read_search(self) -> SearchResult | None:
        """None: the load was no search."""
        if not self._search_path.is_file():
            return None
        return _from_json(TypeAdapter(SearchResult), self._search_path)

    def rows(self, damage: Damage) -> Iterator[Row]:
        """Samples and events; the requests are columns, and there may be millions (results.py)."""
        for path in [*self.sample_files(), *sorted(self.root.glob("events*.jsonl"))]:
            yield from read_rows(path, damage)

    def stream_counts(self, damage: Damage) -> Iterator[StreamCounts]:
        """How evenly tokens came; none in a run made before this was counted."""
        for path in sorted(self.root.glob("streams/*.jsonl")):
            yield from (row for row in read_rows(path, damage) if isinstance(row, StreamCounts))


def _is_part(name: str, worker: int) -> bool:
    part = PART.fullmatch(name)
    return part is not None and part["worker"] == f"{worker:02d}"


def replace_file(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never half. Raises RunFolderError."""
    try:
        whole_file.replace_file(path, text)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}") from error


def _to_json(value: Any) -> str:
    return json.dumps(dataclasses.asdict(value), indent=2, ensure_ascii=True) + "\n"


def _from_json(adapter: TypeAdapter[T], path: Path) -> T:
    try:
        return adapter.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
