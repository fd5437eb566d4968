"""A scenario's YAML file or a preset's name -> Scenario, with what its files hold; and back to plain data."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from estimator.catalog import configs_folder
from estimator.spec import SpecError
from estimator.yaml_file import read_yaml
from loadtest.scenario.dataset import counted, guessed_text_tokens, guessed_tokens
from loadtest.scenario.limits import Limits, LimitsAsked, with_goodput
from loadtest.scenario.parts import ScenarioError, lengths_of, require
from loadtest.scenario.trace import looked_at
from loadtest.scenario.whole import Scenario

LENGTHS_ROWS_MAX: Final = 1_000_000
LENGTH_KEYS: Final = ("input_tokens", "output_tokens")


def read_scenario(path: Path, asked: LimitsAsked = LimitsAsked()) -> Scenario:  # noqa: B008  (frozen)
    """A file, or one of configs/scenarios by its name; the files it names lie beside it.

    `asked`: limits of a command line, over those of the file; a search may have no others.
    Raises ScenarioError, one sentence, when a file is missing, too large or no scenario.
    """
    found = find_scenario(path)
    asked.over(Limits())  # what is wrong by itself is not the file's fault
    try:
        return with_files(parse_scenario(_beside(_limited(read_yaml(found), asked.fields()), found.parent)))
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error
    except SpecError as error:
        raise ScenarioError(str(error)) from error


def find_scenario(path: Path) -> Path:
    """`chat` is configs/scenarios/chat.yaml where no such file lies here."""
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    folder = configs_folder() / "scenarios"
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if path.name in names:
        return folder / f"{path.name}.yaml"
    close = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(names)}"
    raise ScenarioError(f"there is no scenario {path.name!r}; {hint}")


def parse_scenario(body: Any) -> Scenario:
    """A Scenario from plain data; raises ScenarioError naming the first wrong key. Reads no file."""
    if not isinstance(body, dict):
        raise ScenarioError("a scenario is a mapping of keys, see configs/scenarios/qwen-chat.yaml")
    try:
        return _adapter().validate_python(_short_forms(body))
    except ValidationError as error:
        raise ScenarioError(_sentence(error)) from error
    except SpecError as error:
        raise ScenarioError(str(error)) from error


def scenario_body(scenario: Scenario) -> dict[str, Any]:
    """Plain data that parse_scenario turns into an equal Scenario again, also after a trip through JSON."""
    body: dict[str, Any] = _adapter().dump_python(scenario, mode="json", exclude_none=True)
    return body


@cache
def _adapter() -> TypeAdapter[Scenario]:
    return TypeAdapter(Scenario)  # made when first needed: it takes longer than most commands


def with_files(scenario: Scenario) -> Scenario:
    """With the lengths of its trace, and of its dataset as its bytes let guess. Raises ScenarioError."""
    if scenario.trace is not None and scenario.trace.seen is None:
        return replace(scenario, trace=looked_at(scenario.trace))
    if scenario.dataset is not None and not scenario.dataset.counted:
        dataset = counted(
            scenario.dataset,
            scenario.seed,
            scenario.output_tokens,
            scenario.session,
            count_prompt=guessed_tokens,
            count_answer=guessed_text_tokens,
        )
        return replace(scenario, dataset=replace(dataset, is_guess=True))
    return scenario


def counted_with(scenario: Scenario, tokenizer: str | None) -> Scenario:
    """The same, counted by the tokenizer of that file or folder; None leaves it as the scenario says."""
    return scenario if tokenizer is None else replace(scenario, tokenizer=str(Path(tokenizer).absolute()))


def reseeded(scenario: Scenario, seed: int) -> Scenario:
    """The same under another seed; other rows of a dataset are sampled then."""
    dataset = None if scenario.dataset is None else replace(scenario.dataset, counted=())
    return with_files(replace(scenario, seed=seed, dataset=dataset))


def _short_forms(body: Mapping[str, Any]) -> dict[str, Any]:
    """`input_tokens: 256` is constant; so is `session: {turns: 4}`; `limits` may speak vLLM's words."""
    whole = {key: _constant(value) if key in LENGTH_KEYS else value for key, value in body.items()}
    session = whole.get("session")
    if isinstance(session, dict) and "turns" in session:
        whole["session"] = {**session, "turns": _constant(session["turns"])}
    if isinstance(limits := whole.get("limits"), dict):
        whole["limits"] = with_goodput(limits)
    return whole


def _limited(body: Any, asked: Mapping[str, Any]) -> Any:
    """Before the file is judged: what it leaves out may be on the command line."""
    said = body.get("limits", {}) if isinstance(body, dict) else None
    if not asked or not isinstance(said, dict):
        return body
    return {**body, "limits": {**with_goodput(said), **asked}}


def _constant(value: Any) -> Any:
    return {"kind": "constant", "tokens": value} if type(value) is int else value


def _beside(body: Any, folder: Path) -> Any:
    """File names become whole paths, and lengths that lie in a file its values."""
    if not isinstance(body, dict):
        return body
    whole = dict(body)
    for key in ("trace", "dataset"):
        if isinstance(part := whole.get(key), dict) and isinstance(part.get("file"), str):
            whole[key] = {**part, "file": str((folder / part["file"]).resolve())}
    if isinstance(whole.get("tokenizer"), str):
        whole["tokenizer"] = str((folder / whole["tokenizer"]).resolve())
    for key in LENGTH_KEYS:
        if isinstance(part := whole.get(key), dict) and "file" in part:
            whole[key] = _lengths_of_file(part, folder, key)
    return whole


def _lengths_of_file(part: Mapping[str, Any], folder: Path, key: str) -> dict[str, Any]:
    require(
        set(part) == {"kind", "file", "column"} and part["kind"] == "empirical",
        f"{key}: lengths of a file take kind: empirical, file and column",
    )
    file, column = (folder / str(part["file"])).resolve(), str(part["column"])
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            is_csv = file.suffix == ".csv"
            rows = csv.DictReader(text) if is_csv else (json.loads(line) for line in text if line.strip())
            lengths = lengths_of(int(row[column]) for row in islice(rows, LENGTHS_ROWS_MAX))
    except KeyError as error:
        raise ScenarioError(f"{key}: {file} has no column {column!r}") from error
    except (OSError, ValueError, TypeError, csv.Error, RecursionError) as error:
        raise ScenarioError(f"{key}: {file} holds no lengths: {error}") from error
    return {"kind": "empirical", "values": lengths.values, "weights": lengths.weights}


def _sentence(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    # a mistyped key is also a missing one: the first says more
    first = next((one for one in found if one["type"] == "unexpected_keyword_argument"), found[0])
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        known = _keys_beside(first["loc"])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if first["type"] == "missing":
        return f"{where!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return message if message.startswith(where) else f"{where}: {message}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the part that a wrong key stands in: down from the scenario, by the types of its fields."""
    owner: Any = Scenario
    for step in location[:-1]:
        if isinstance(step, str):
            owner = _dataclass_in(get_type_hints(owner).get(step)) or owner
    return sorted(owner.__dataclass_fields__)


def _dataclass_in(hint: Any) -> Any:
    """The dataclass of `Part`, `Part | None` or `tuple[Part, ...]`."""
    if is_dataclass(hint):
        return hint
    return next((found for part in get_args(hint) if (found := _dataclass_in(part)) is not None), None)
