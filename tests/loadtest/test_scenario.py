"""The scenario file: what is refused, and with which sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.scenario import ScenarioError, parse_scenario, read_scenario, scenario_body

SHIPPED = sorted((Path(__file__).parents[2] / "configs/scenarios").glob("*.yaml"))


def a_body(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": "x",
        "input_tokens": {"kind": "constant", "tokens": 256},
        "output_tokens": {"kind": "uniform", "min": 16, "max": 64},
        "stages": [{"users": 3, "hold_s": 20}],
    }
    return {**body, **changes}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_scenario_is_read(path: Path) -> None:
    assert read_scenario(path).stages


def test_a_scenario_survives_the_trip_through_json() -> None:
    scenario = parse_scenario(
        a_body(limits={"ttft_s": 2.0}, stages=[{"of": "slots", "ratio": 1, "hold_s": 9}])
    )
    assert parse_scenario(json.loads(json.dumps(scenario_body(scenario)))) == scenario


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stagse": []}, "unknown key 'stagse'; did you mean 'stages'?"),
        ({"limits": {"tttft_s": 1}}, "unknown key 'limits.tttft_s'; did you mean 'ttft_s'?"),
        ({"zzz": 1}, "unknown key 'zzz'; known keys: "),
        ({"stages": [{"users": 0, "hold_s": 9}]}, "stages.0: users must be at least 1, got 0"),
        ({"stages": [{"users": 4, "of": "slots", "ratio": 1, "hold_s": 9}]}, "either `users`, or `of`"),
        ({"stages": [{"of": "guaranteed", "hold_s": 9}]}, "either `users`, or `of` and `ratio`"),
        ({"stages": [{"users": 3, "hold_s": 2}]}, "which settle_s 5 uses up"),
        ({"stages": []}, "give at least one stage"),
        ({"stages": 3}, "stages"),
        ({"input_tokens": {"kind": "uniform", "tokens": 4}}, "lengths of kind uniform take"),
        ({"input_tokens": {"kind": "uniform", "min": 9, "max": 4}}, "min 9 is above max 4"),
        ({"input_tokens": {"kind": "constant", "tokens": -4}}, "tokens must be positive, got -4"),
        ({"endpoint": "responses"}, "endpoint: Input should be 'completions' or 'chat'"),
        ({"limits": {"percentile": 100}}, "percentile must be from 50 to below 100"),
        ({"timeouts": {"total_s": 0}}, "timeouts.total_s must be above 0"),
        ({"spawn_rate_per_s": 0}, "spawn_rate_per_s must be above 0"),
    ],
)
def test_a_wrong_key_is_named_with_its_fix(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(a_body(**changes))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistyped_key_is_named_before_the_key_it_leaves_missing() -> None:
    body = a_body()
    body["stagse"] = body.pop("stages")
    with pytest.raises(ScenarioError, match="did you mean 'stages'"):
        parse_scenario(body)


def test_a_missing_key_is_named() -> None:
    body = a_body()
    del body["input_tokens"]
    with pytest.raises(ScenarioError, match="'input_tokens' is missing"):
        parse_scenario(body)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is not YAML"),
        ("- 1\n", "a scenario is a mapping"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=sentence):
        read_scenario(path)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot read scenario"):
        read_scenario(tmp_path / "none.yaml")
    huge = tmp_path / "huge.yaml"
    huge.write_text("x" * 1_000_001)
    with pytest.raises(ScenarioError, match="1000001 bytes"):
        read_scenario(huge)
