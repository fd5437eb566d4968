"""The scenario file: what is refused, and with which sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from estimator.spec import Lengths
from loadtest.scenario import (
    Scenario,
    ScenarioError,
    SearchAsked,
    parse_scenario,
    read_scenario,
    scenario_body,
    searching,
)
from loadtest.scenario.parts import lengths_of

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
        ({"stages": [{"users": -1, "hold_s": 9}]}, "stages.0: users must be at least 0, got -1"),
        ({"stages": [{"users": 4, "of": "slots", "ratio": 1, "hold_s": 9}]}, "either `users`, or `of`"),
        ({"stages": [{"of": "guaranteed", "hold_s": 9}]}, "either `users`, or `of` and `ratio`"),
        ({"stages": [{"users": 3, "hold_s": 2}]}, "which settle_s 5 uses up"),
        ({"stages": []}, "give at least one stage"),
        ({"stages": 3}, "stages"),
        ({"input_tokens": {"kind": "uniform", "tokens": 4}}, "lengths of kind uniform take"),
        ({"input_tokens": {"kind": "uniform", "min": 9, "max": 4}}, "min 9 is above max 4"),
        ({"input_tokens": {"kind": "constant", "tokens": -4}}, "tokens must be positive, got -4"),
        ({"endpoint": "responses"}, "endpoint: Input should be 'completions' or 'chat'"),
        ({"limits": {"percentile": 100}}, "limits.percentile must be from 50 to below 100"),
        ({"timeouts": {"total_s": 0}}, "timeouts.total_s must be above 0"),
        ({"spawn_rate_per_s": 0}, "spawn_rate_per_s must be above 0"),
        ({"input_tokens": {"kind": "normal", "mean": 4}}, "lengths of kind normal take"),
        ({"input_tokens": {"kind": "empirical", "buckets": [{"mn": 4}]}}, "did you mean 'min'?"),
        ({"arrivals": {"kind": "poisson"}}, "arrivals of kind poisson need a rate_per_s in each stage"),
        ({"arrivals": {"kind": "gama"}}, "arrivals.kind"),
        ({"arrivals": {"kind": "poisson", "burstiness": 2}}, "burstiness belongs to kind gamma"),
        ({"arrivals": {"kind": "trace"}}, "need a trace: {file, format}"),
        ({"stages": [{"users": 3, "rate_per_s": 1, "hold_s": 9}]}, "kind closed do not follow"),
        ({"stages": [{"rate_per_s": 1, "hold_s": 9}]}, "either `users`, or `of` and `ratio`"),
        ({"shared_prefix": {"tokens": 5, "share": 0.5}}, "takes either `tokens` or `share`"),
        ({"shared_prefix": {"share": 1.0}}, "share must be between 0 and 1"),
        ({"session": {"turns": 3}}, "session needs endpoint: chat"),
        ({"session": {"turns": 3, "think": 1}, "endpoint": "chat"}, "did you mean 'think_s'?"),
        ({"session": {"turns": 3, "context_tokens_max": 99}, "endpoint": "chat"}, "no room for a first turn"),
        ({"images": {"width": 8, "height": 8, "tokens_each": 9}}, "images needs endpoint: chat"),
        ({"images": {"width": 8, "height": 8}, "endpoint": "chat"}, "'images.tokens_each' is missing"),
        ({"images": {"width": 9000, "height": 8, "tokens_each": 9}, "endpoint": "chat"}, "1 to 4096"),
        ({"system": "x"}, "system needs endpoint: chat"),
        ({"models": [{"name": "a", "share": 0}]}, "models.0: share must be above 0"),
        ({"extra_body": {"max_tokens": 5}}, "'max_tokens' is set by each request itself"),
        ({"extra_body": {"n": 2}}, "'n' would make one request several"),
        ({"extra_body": {"api_key": "x"}}, "'api_key' reads like a secret"),
        ({"extra_headers": {"Authorization": "Bearer x"}}, "'Authorization' reads like a secret"),
        ({"extra_headers": {"x-api-key": "x"}}, "'x-api-key' reads like a secret"),
        ({"extra_headers": {"Host": "x"}}, "'Host' is set by the client"),
        ({"extra_headers": {"X-A": "b\r\nX-C: d"}}, "must be one line of plain ASCII"),
        ({"extra_headers": {"X A": "b"}}, "is no header name"),
        ({"search": {}}, "give either stages or a search, not both"),
        ({"search": {}, "stages": []}, "a search needs to know what is good: set ttft_s"),
        ({"search": {"max_minutes": 0}}, "search.max_minutes must be above 0"),
        ({"search": {"start_users": 9, "users_max": 4}}, "start_users 9 is above search.users_max 4"),
        ({"search": {"minutes": 3}}, "unknown key 'search.minutes'; did you mean 'max_minutes'?"),
        (
            {"search": {}, "stages": [], "limits": {"e2e_s": 9}, "arrivals": {"kind": "poisson"}},
            "arrivals of kind poisson do not follow",
        ),
        ({"trace": {"file": "t", "format": "csv"}}, "input_tokens comes from the trace"),
        ({"dataset": {"file": "t", "format": "jsonl"}}, "input_tokens comes from the dataset"),
    ],
)
def test_a_wrong_key_is_named_with_its_fix(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(a_body(**changes))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_users_who_think_are_no_load_to_search_with() -> None:
    session = {"turns": 3, "think_s": {"mean_s": 1.0}}
    with pytest.raises(ScenarioError, match=r"leave session\.think_s out"):
        parse_scenario(a_body(search={}, stages=[], endpoint="chat", session=session, limits={"ttft_s": 1}))


def test_a_search_takes_the_place_of_the_stages() -> None:
    staged = parse_scenario(a_body(limits={"ttft_s": 1}))
    searched = searching(staged)
    assert (searched.stages, searched.search) == ((), SearchAsked())
    assert parse_scenario(json.loads(json.dumps(scenario_body(searched)))) == searched


def test_what_is_no_secret_is_let_through() -> None:
    scenario = parse_scenario(
        a_body(
            extra_body={"min_tokens": 3, "skip_special_tokens": True, "cache_salt": "a"},
            extra_headers={"X-Request-Class": "batch"},
        )
    )
    assert scenario.extra_headers == {"X-Request-Class": "batch"}


def test_a_whole_number_is_a_constant_length() -> None:
    scenario = parse_scenario(a_body(input_tokens=64, endpoint="chat", session={"turns": 4}))
    assert scenario.input_tokens == Lengths.constant(64)
    assert scenario.session is not None
    assert scenario.session.turns == Lengths.constant(4)


@pytest.mark.parametrize(
    ("name", "text"),
    [("l.csv", "n,other\n5,1\n5,2\n9,3\n"), ("l.jsonl", '{"n": 5}\n{"n": 5}\n{"n": 9}\n')],
)
def test_lengths_can_lie_in_a_file_beside_the_scenario(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    path = tmp_path / "s.yaml"

    def read(column: str) -> Scenario:
        lengths = {"kind": "empirical", "file": name, "column": column}
        path.write_text(json.dumps(a_body(output_tokens=lengths)))
        return read_scenario(path)

    found = read("n").output_tokens
    assert found == Lengths(kind="empirical", values=(5, 9), weights=(2.0, 1.0))
    with pytest.raises(ScenarioError, match="has no column 'm'"):
        read("m")


def test_a_file_of_many_lengths_keeps_its_quantiles_and_its_ends() -> None:
    counts = [n * n + 1 for n in range(5000)]
    kept = lengths_of(counts)
    assert kept.values is not None
    assert len(kept.values) <= 1000
    assert (kept.shortest, kept.longest) == (1, 4999**2 + 1)
    for share in (0.1, 0.5, 0.95):
        assert kept.at(share) == pytest.approx(counts[int(share * 5000)], rel=0.02)


@pytest.mark.parametrize("name", ["chat", "rag", "code", "summarise", "agent", "long-context"])
def test_a_preset_is_found_by_its_name(name: str) -> None:
    assert read_scenario(Path(name)).name == name


def test_a_mistyped_preset_is_named_with_the_nearest() -> None:
    with pytest.raises(ScenarioError, match=r"there is no scenario 'sumarise'; did you mean 'summarise'\?"):
        read_scenario(Path("sumarise"))


def test_a_conversations_requests_are_predicted_with_all_that_was_said_before() -> None:
    body = a_body(input_tokens=100, output_tokens=20, endpoint="chat", session={"turns": 3})
    workload = parse_scenario(body).workload
    assert [workload.input_tokens.at(share) for share in (0.1, 0.5, 0.9)] == [100, 220, 340]
    assert workload.longest_tokens == 360


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
    with pytest.raises(ScenarioError, match="cannot read"):
        read_scenario(tmp_path / "none.yaml")
    huge = tmp_path / "huge.yaml"
    huge.write_text("x" * 1_000_001)
    with pytest.raises(ScenarioError, match="more than 1,000,000 bytes"):
        read_scenario(huge)
