"""Preflight: asks the server what it is, predicts, plans the stages and opens the run folder.

Everything that can be wrong is found here, before the first request and before anything is written.
"""

from __future__ import annotations

import platform
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from estimator.capacity import KvPool, Prediction, predict
from estimator.errors import EXIT_USAGE, PlainError
from estimator.spec import EngineName
from loadtest.access import USERS_CAP, require_below_cap, require_consent
from loadtest.audit import Check, exit_code
from loadtest.conductor.audit.descriptors import reserve_descriptors
from loadtest.conductor.fitting import fitted_to
from loadtest.conductor.plan import plan_stages
from loadtest.conductor.pool import computed_pool, counted_pool, kv_pool_from_metrics
from loadtest.conductor.server_facts import ServedModel, ServerFacts, read_server
from loadtest.conductor.telemetry_facts import shown_elsewhere
from loadtest.conductor.tokenizer import Tokenizer
from loadtest.earlier_part import EarlierPart
from loadtest.named_server import NamedServer
from loadtest.origin import ApiKey, Origin, read_api_key
from loadtest.run_folder import Manifest, PlannedStage, RunFolder, RunFolderError
from loadtest.scenario import Scenario, parse_scenario, scenario_body
from loadtest.telemetry import Telemetry
from loadtest.textbook_facts import TextbookFacts
from loadtest.workers.native import IS_NATIVE

if TYPE_CHECKING:  # numpy costs a tenth of a second, a search half of that
    from loadtest.conductor.past import Past
    from loadtest.conductor.search import SearchPlan


class PreflightError(PlainError):
    """The run cannot start; the exit code is 2 for what was asked, 3 for a server that is not there."""

    def __init__(self, message: str, *, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a person asked for. `model` None means "the one model the server serves".

    `pool` is the KV cache computed from the model's config and the GPU, when a person named them; it is
    used where the server shows no cache of its own, and compared with it where it does.
    """

    origin: Origin
    scenario: Scenario
    engine: EngineName
    runs_root: Path
    model: str | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    pool: KvPool | None = None
    textbook: TextbookFacts | None = None
    named: NamedServer | None = None
    users_max: int | None = None
    """Set when a person gave the number of users: the stages of the scenario are not used."""
    processes: int = 1
    users_cap: int = USERS_CAP
    allow_public_host: bool = False
    telemetry: Telemetry = field(default_factory=Telemetry)
    signed_by: str | None = None
    """Of a soak: the run whose signed number it holds."""
    past: Past | None = None
    """The interrupted run that this one continues: its prediction is kept; the server must be the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """What the server is and what will be asked of it; nothing is written yet."""

    request: RunRequest
    facts: ServerFacts
    served: ServedModel
    prediction: Prediction | None
    stages: tuple[PlannedStage, ...]
    search: SearchPlan | None = None

    @property
    def users_max(self) -> int:
        if self.search is not None:
            return self.search.users_max
        return self.request.users_max or max(stage.users for stage in self.stages)


Audit = Callable[[PlannedRun, ApiKey | None], tuple[Check, ...]]
"""Looks at client and server before the load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    folder: RunFolder
    manifest: Manifest
    scenario: Scenario
    prediction: Prediction | None


def prepare_run(request: RunRequest, audit: Audit | None = None) -> PreparedRun:
    """Raises PreflightError, also for what `audit` finds red; leaves no folder behind then."""
    try:
        key = read_api_key(variable=request.origin.access.api_key_variable)
        plan = plan_run(request, key)
        _refuse_red([reserve_descriptors(plan.users_max)])
        checks = () if audit is None else audit(plan, key)
        _refuse_red(checks)
        return _open_folder(plan, checks)
    except PlainError as error:
        raise PreflightError(str(error), exit_code=error.exit_code) from error


def plan_run(request: RunRequest, key: ApiKey | None) -> PlannedRun:
    """Asks the server and plans the load. Raises PlainError when it may not, or cannot, be loaded so."""
    require_consent(request.origin.host, allowed=request.allow_public_host)
    facts = read_server(request.origin, key)
    served = served_model(request.origin, request.engine, request.model, facts)
    facts = shown_elsewhere(request.telemetry, request.engine, served.name, request.origin, facts)
    if request.past is not None:
        request.past.require_same(facts)
    tokenizer = Tokenizer(origin=request.origin, key=key, model=served.name, engine=request.engine)
    request = replace(request, scenario=fitted_to(request.scenario, tokenizer, facts.models))
    prediction = request.past.prediction if request.past else _prediction(request, facts, served)
    is_planned, scenario = request.users_max is None, request.scenario
    searches = is_planned and scenario.search is not None
    plan = PlannedRun(
        request=request,
        facts=facts,
        served=served,
        prediction=prediction,
        stages=plan_stages(scenario, prediction) if is_planned else (),
        search=_search(scenario, prediction, request.users_cap) if searches else None,
    )
    require_below_cap(plan.users_max, request.users_cap)
    return plan


def _search(scenario: Scenario, prediction: Prediction | None, users_cap: int) -> SearchPlan:
    from loadtest.conductor.search_plan import plan_search  # other loads do not wait for it

    return plan_search(scenario, prediction, users_cap)


def open_prepared(root: Path) -> PreparedRun:
    """The run that `ullage signoff` prepared, read back by the Locust process it starts."""
    try:
        folder = RunFolder.open(root)
        manifest = folder.read_manifest()
        return PreparedRun(
            folder=folder,
            manifest=manifest,
            scenario=parse_scenario(dict(manifest.scenario)),
            prediction=folder.read_prediction(),
        )
    except PlainError as error:
        raise PreflightError(str(error), exit_code=error.exit_code) from error


def served_model(origin: Origin, engine: EngineName, model: str | None, facts: ServerFacts) -> ServedModel:
    """The model asked for, or the only one there is. Raises PreflightError when there is no such."""
    found = facts.reading.engine if facts.reading else None
    if found is not None and found != engine:
        raise PreflightError(f"{origin} is a {found} server: use --engine {found}")
    names = ", ".join(served.name for served in facts.models)
    if model is None:
        if len(facts.models) != 1:
            raise PreflightError(f"{origin} serves {names or 'no model'}: name one with --model")
        return facts.models[0]
    for served in facts.models:
        if served.name == model:
            return served
    raise PreflightError(
        f"{origin} does not serve {model!r}; it serves {names or 'no model'}: correct --model"
    )


def _prediction(request: RunRequest, facts: ServerFacts, served: ServedModel) -> Prediction | None:
    """From the server's own cache when it shows one, else from the model and the GPU, else none."""
    max_model_len = request.max_model_len or served.max_model_len
    longest_tokens = request.scenario.workload.longest_tokens
    if served.max_model_len is not None and longest_tokens > served.max_model_len:
        raise PreflightError(
            f"a request of this scenario can reach {longest_tokens} tokens, but {served.name} serves at most "
            f"{served.max_model_len} (max_model_len): shorten input_tokens or output_tokens"
        )
    shown = kv_pool_from_metrics(facts.reading, max_model_len) if facts.reading else None
    _require_same_pool(shown, request.pool)
    if shown is None and facts.reading is not None and request.pool is not None:
        shown = counted_pool(facts.reading, request.pool) or computed_pool(facts.reading, request.pool)
    pool = shown or request.pool
    if pool is None:
        return None
    return predict(
        pool,
        request.scenario.workload,
        max_model_len=max_model_len or longest_tokens,
        slots=request.max_num_seqs,
    )


def _require_same_pool(shown: KvPool | None, computed: KvPool | None) -> None:
    """Flags that leave another block size than the server has describe another server.

    The number of blocks may differ: it depends on memory that is known to a range only.
    """
    if shown is None or computed is None:
        return
    if shown.block_size_tokens != computed.block_size_tokens:
        raise PreflightError(
            f"the server's KV blocks hold {shown.block_size_tokens} tokens, the flags given here make "
            f"{computed.block_size_tokens}: name the flags the server was started with (--block-size)"
        )


def _refuse_red(checks: Iterable[Check]) -> None:
    red = [check for check in checks if check.level == "red"]
    if red:
        raise PreflightError("; ".join(check.sentence for check in red), exit_code=exit_code(red))


def _open_folder(plan: PlannedRun, checks: tuple[Check, ...]) -> PreparedRun:
    request, facts, prediction = plan.request, plan.facts, plan.prediction
    wall_ns, mono_ns = time.time_ns(), time.perf_counter_ns()
    created = datetime.fromtimestamp(wall_ns / 1e9, tz=UTC)
    folder = _new_folder(request.runs_root, f"{created:%Y%m%dT%H%M%SZ}-{_slug(plan.served.name)}")
    manifest = Manifest(
        processes=request.processes,
        signed_by=request.signed_by,
        parts=_carried(request.past, folder, wall_ns=wall_ns, mono_ns=mono_ns),
        run_id=folder.run_id,
        created_utc=created.isoformat(timespec="seconds"),
        wall_ns=wall_ns,
        mono_ns=mono_ns,
        versions=_versions(facts),
        host=str(request.origin),
        engine=request.engine,
        model=plan.served.name,
        scenario=scenario_body(request.scenario),
        stages=plan.stages,
        server=dict(facts.reading.cache_config) if facts.reading else {},
        access=request.origin.access,
        users_cap=request.users_cap,
        audit=checks,
        telemetry=request.telemetry,
        textbook=request.textbook,
        named=request.named,
    )
    folder.write_manifest(manifest)
    if prediction is not None:
        folder.write_prediction(prediction)
    return PreparedRun(folder=folder, manifest=manifest, scenario=request.scenario, prediction=prediction)


def _carried(past: Past | None, folder: RunFolder, *, wall_ns: int, mono_ns: int) -> tuple[EarlierPart, ...]:
    """Before there is a manifest: a folder that has one holds every row it should."""
    if past is None:
        return ()
    try:
        return past.carry_into(folder, wall_ns=wall_ns, mono_ns=mono_ns)
    except PlainError:
        shutil.rmtree(folder.root)
        raise


def _new_folder(runs_root: Path, run_id: str) -> RunFolder:
    for attempt in ("", "-2", "-3", "-4"):  # runs that start within the same second
        if not (runs_root / f"{run_id}{attempt}").exists():
            return RunFolder.create(runs_root, f"{run_id}{attempt}")
    raise RunFolderError(f"cannot create a run folder {run_id} in {runs_root}: too many of that name")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rsplit("/", 1)[-1]).strip("-.").lower()[:40] or "model"


def _versions(facts: ServerFacts) -> Mapping[str, str]:
    found = {"python": platform.python_version(), "reader": "C" if IS_NATIVE else "Python"}
    for package in ("ullage", "locust", "gevent"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if facts.version is not None:
        found["server"] = facts.version
    return found
