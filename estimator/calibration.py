"""What a real server's start taught us, kept for later: overheads by model, GPU and engine version.

A figure is used again only where the settings that decide it are the same; otherwise the estimate says that
it was not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from estimator.engine_spec import EngineSpec
from estimator.memory import EngineLimits, KvBudget, Overheads
from estimator.spec import Interval, SpecError
from estimator.whole_file import replace_file

if TYPE_CHECKING:
    from estimator.server_log import ServerLog

FORMAT: Final = 1
FILE_BYTES_MAX: Final = 10_000_000
ENTRIES_MAX: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the overheads of a start: a calibration holds for these alone."""

    model: str
    gpu: str
    engine: str
    version: str
    tp: int
    pp: int
    max_num_batched_tokens: int
    max_num_seqs: int
    enforce_eager: bool


def settings_of(model: str, gpu: str, version: str, engine: EngineSpec, resolved: EngineLimits) -> Settings:
    return Settings(
        model=model,
        gpu=gpu,
        engine=engine.engine,
        version=version,
        tp=engine.tp,
        pp=engine.pp,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_num_seqs=resolved.max_num_seqs,
        enforce_eager=engine.enforce_eager,
    )


def overheads_from_log(log: ServerLog) -> Overheads:
    """Each overhead that the log states. Raises SpecError when it states none."""
    overheads = Overheads(
        activation_bytes=log.activation_bytes,
        cuda_graph_bytes=log.cuda_graph_bytes,
        non_torch_bytes=log.non_torch_bytes,
        source="server log",
    )
    if overheads == Overheads(source="server log"):
        raise SpecError(
            "the log does not say what start-up took (vLLM prints 'Free memory on device ...' once up); "
            "give the whole start-up output"
        )
    return overheads


def context_from_log(log: ServerLog, total_bytes: int, weights_bytes: int) -> Overheads:
    """What is in use beside the weights, from the free memory that LMDeploy's TurboMind prints.

    Raises SpecError when the log states none, or more than the GPU can have left.
    """
    free = log.free_bytes
    if free is None:
        raise SpecError(
            "the log does not say how much memory was free (TurboMind prints 'Object cache budget ... from "
            "free ...' at level WARNING); give the whole start-up output"
        )
    rest = total_bytes - weights_bytes
    if free.likely > rest:
        raise SpecError("the log has more memory free than the weights leave: correct --gpu or the model")
    in_use = Interval(
        low=max(0, rest - free.high), likely=max(0, rest - free.likely), high=max(0, rest - free.low)
    )
    return Overheads(non_torch_bytes=in_use, source="server log")


def overheads_from_blocks(budget: KvBudget, num_gpu_blocks: int) -> Overheads:
    """All overheads together, from the blocks a running server has: its KV bytes are known to one block.

    budget: our own answer for that server. Raises SpecError when the server has more than all that is left.
    """
    ledger = budget.ledger
    stage = budget.ledgers.index(ledger)
    block_bytes = budget.bytes_per_block[stage]
    ours = ("activation peak", "CUDA graphs", "outside PyTorch")
    shared = ledger.kv_bytes.likely + sum(ledger.line(name).size_bytes.likely for name in ours)
    high = shared - num_gpu_blocks * block_bytes
    if high < 0:
        raise SpecError(
            f"the server has {num_gpu_blocks:,} blocks, more than fit beside its weights: correct --gpu, "
            "--gpu-memory-utilization or the model"
        )
    low = max(0.0, high - block_bytes + 1)
    return Overheads(
        activation_bytes=Interval(low=low, likely=(low + high) / 2, high=high),
        cuda_graph_bytes=Interval.exact(0),
        non_torch_bytes=Interval.exact(0),
        source="the running server's blocks, all overheads in one",
    )


def calibration_path(environ: Mapping[str, str] = os.environ) -> Path:
    """ULLAGE_CALIBRATION, or calibration.json in the user's data folder."""
    given = environ.get("ULLAGE_CALIBRATION")
    if given:
        return Path(given)
    data = environ.get("XDG_DATA_HOME")
    home = Path(data) if data else Path.home() / ".local" / "share"
    return home / "ullage" / "calibration.json"


def recall(settings: Settings, path: Path) -> Overheads | None:
    """What was learned for exactly these settings; None where nothing was. Raises SpecError on a bad file."""
    for entry in _entries(path):
        if entry["settings"] == asdict(settings):
            return _overheads(entry["overheads"], entry.get("kept_on"), path)
    return None


def remember(settings: Settings, overheads: Overheads, path: Path, kept_on: str | None = None) -> None:
    """Adds or replaces one entry; the file is replaced whole. kept_on: the day, ISO 8601.

    Raises SpecError when it cannot be written.
    """
    kept = [entry for entry in _entries(path) if entry["settings"] != asdict(settings)]
    entry = {"settings": asdict(settings), "overheads": asdict(overheads)}
    kept.append(entry if kept_on is None else {**entry, "kept_on": kept_on})
    body = json.dumps({"format": FORMAT, "entries": kept[-ENTRIES_MAX:]}, indent=2, sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, body + "\n")
    except OSError as error:
        raise SpecError(f"cannot write {path} ({error.strerror}); set ULLAGE_CALIBRATION to a file") from None


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    broken = SpecError(f"{path} is not a calibration file of format {FORMAT}; move it away")
    try:
        with path.open("rb") as stream:
            body = json.loads(stream.read(FILE_BYTES_MAX))
        if body["format"] != FORMAT or not all(
            isinstance(entry["settings"], dict) and isinstance(entry["overheads"], dict)
            for entry in body["entries"]
        ):
            raise broken
    except OSError as error:
        raise SpecError(f"cannot read {path} ({error.strerror}); set ULLAGE_CALIBRATION to a file") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise broken from None
    return list(body["entries"])


def _overheads(found: Mapping[str, Any], kept_on: object, path: Path) -> Overheads:
    try:
        sizes = {
            name: None if found[name] is None else Interval(**found[name])
            for name in ("activation_bytes", "cuda_graph_bytes", "non_torch_bytes")
        }
        day = f", {kept_on}" if isinstance(kept_on, str) and kept_on.isprintable() else ""
        return Overheads(**sizes, source=f"calibrated ({found['source']}){day}")
    except (KeyError, TypeError):
        raise SpecError(f"{path} is not a calibration file of format {FORMAT}; move it away") from None
