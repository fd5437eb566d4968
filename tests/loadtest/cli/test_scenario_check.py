"""`ullage scenario`: what it says of a scenario before it is sent, alone and with a server's tokenizer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner, Result
from twin_visits import visit
from workloads import as_bytes

from estimator.spec import EngineName
from estimator.twin.server import TwinServer
from loadtest.cli import main
from loadtest.conductor.fitting import fitted_to, words_for
from loadtest.conductor.server_facts import read_server
from loadtest.conductor.tokenizer import Tokenizer
from loadtest.origin import parse_origin
from loadtest.scenario import PATHS, Scenario, parse_scenario, scenario_body
from loadtest.scenario.reading import with_files
from loadtest.workload.asker import open_workload

BODY: dict[str, Any] = {
    "name": "short",
    "input_tokens": 100,
    "output_tokens": 8,
    "stages": [{"users": 2, "hold_s": 10}],
}


def written(folder: Path, **changes: Any) -> str:
    path = folder / "short.yaml"
    path.write_text(json.dumps(BODY | changes))
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["scenario", *arguments])


async def host_of(client: aiohttp.ClientSession) -> str:
    async with client.get("/v1/models") as response:
        return str(response.url.origin())


def test_a_preset_is_told_in_tokens() -> None:
    told = run("check", "rag")
    assert told.exit_code == 0
    assert "rag: what it will send (seed 7)" in told.output
    assert "14% of the prompt tokens begin as an earlier prompt did" in told.output
    assert "token ids: exact" in told.output
    assert max(map(len, told.output.splitlines())) <= 100


def test_machines_get_the_same_as_json(tmp_path: Path) -> None:
    told = json.loads(run("check", written(tmp_path), "--json").output)
    assert told["input_tokens"] == {"mean": 100, "p50": 100, "p95": 100, "longest": 100}
    assert told["stages"][0]["in_flight_tokens_max"] == 216
    assert told["example"]["prompt"][-1] == "… 94 more"


def test_another_seed_sends_something_else(tmp_path: Path) -> None:
    one, other = (run("check", written(tmp_path), "--json", "--seed", seed).output for seed in ("1", "2"))
    assert json.loads(one)["example"] != json.loads(other)["example"]


def test_all_presets_are_listed_with_what_they_are() -> None:
    told = run("list").output
    assert all(name in told for name in ("chat", "rag", "code", "summarise", "agent", "long-context"))
    assert "Code completion in an editor" in told


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"input_tokens": 3}, "a unique prompt takes at least 4 tokens"),
        ({"inptu_tokens": 3}, "did you mean 'input_tokens'?"),
    ],
)
def test_a_scenario_that_cannot_be_sent_ends_with_one_sentence(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    told = run("check", written(tmp_path, **changes))
    assert told.exit_code == 2
    assert sentence in told.output
    assert told.output.count("\n") == 1


def test_with_a_host_its_tokenizer_counts_and_its_limits_hold(tmp_path: Path) -> None:
    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        host = await host_of(client)
        chat = written(tmp_path, endpoint="chat", system="be kind")
        told = await asyncio.to_thread(run, "check", chat, "--host", host)
        assert told.exit_code == 0, told.output
        assert "100 in the request below, 100 planned" in told.output
        assert '"model": "tiny"' in told.output
        long = await asyncio.to_thread(run, "check", written(tmp_path, output_tokens=4000), "--host", host)
        assert long.exit_code == 2
        assert "a request can reach 4,100 tokens, but tiny serves at most 2,048" in long.output
        other = written(tmp_path, models=[{"name": "adapter"}])
        absent = await asyncio.to_thread(run, "check", other, "--host", host)
        assert "models: 'adapter' is not served; served are tiny" in absent.output

    visit(story)


def as_sent(host: str, engine: EngineName, body: dict[str, Any]) -> tuple[Scenario, Any]:
    """The scenario as the server can be asked it, after a trip through the manifest; and its asker."""
    server = Tokenizer(origin=parse_origin(host), key=None, model="tiny", engine=engine)
    scenario = with_files(parse_scenario(BODY | body))
    fitted = fitted_to(scenario, server, read_server(server.origin, None).models)
    kept = parse_scenario(json.loads(json.dumps(scenario_body(fitted))))
    assert kept == fitted
    words = words_for(kept, server)
    return kept, open_workload(kept, model="tiny", run_id="r", worker=0, workers=1, chat=words)


def shapes(folder: Path) -> list[dict[str, Any]]:
    talks = [
        {
            "conversations": [
                {"from": "human", "value": f"what is {n}?"},
                {"from": "gpt", "value": "a number"},
                {"from": "human", "value": "and what is a number?"},
                {"from": "gpt", "value": "one of those that we count with"},
            ]
        }
        for n in range(3)
    ]
    (folder / "talks.json").write_text(json.dumps(talks))
    rows = [
        {"timestamp": n, "input_length": 600 + n, "output_length": 3, "hash_ids": [0, n]} for n in range(8)
    ]
    (folder / "trace.jsonl").write_text("\n".join(map(json.dumps, rows)))
    none = {"input_tokens": None, "output_tokens": None}
    talks_file, trace_file = str(folder / "talks.json"), str(folder / "trace.jsonl")
    return [
        {},
        {"endpoint": "chat", "system": "be kind", "session": {"turns": 3}},
        {"endpoint": "chat", "shared_prefix": {"share": 0.5}},
        {**none, "endpoint": "chat", "dataset": {"file": talks_file, "format": "sharegpt"}},
        {
            **none,
            "output_tokens": 12,
            "endpoint": "chat",
            "session": {},
            "dataset": {"file": talks_file, "format": "sharegpt", "unique": False},
        },
        {
            **none,
            "endpoint": "chat",
            "session": {"answers": "recorded"},
            "dataset": {"file": talks_file, "format": "sharegpt"},
        },
        {**none, "dataset": {"file": talks_file, "format": "sharegpt", "unique": False}},
        {**none, "trace": {"file": trace_file, "format": "mooncake"}},
        {**none, "endpoint": "chat", "trace": {"file": trace_file, "format": "mooncake"}},
    ]


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy"])
def test_the_server_counts_what_was_planned_in_every_kind_of_workload(
    engine: EngineName, tmp_path: Path
) -> None:
    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        host = await host_of(client)
        for shape in shapes(tmp_path):
            if engine == "lmdeploy" and shape.get("endpoint") != "chat":
                continue  # it takes no token ids, and counts no text without a template here
            if engine == "lmdeploy" and shape.get("session") == {"answers": "recorded"}:
                continue  # it counts by answering, which takes long
            scenario, asker = await asyncio.to_thread(as_sent, host, engine, shape)
            for seq in range(3):
                ask = asker.first(seq)
                assert as_bytes(ask) == as_bytes(asker.first(seq))
                while ask is not None:
                    body = {**ask.body, "stream": False, "stream_options": None}
                    async with client.post(PATHS[scenario.endpoint], json=body) as response:
                        answer = await response.json()
                    usage = answer["usage"]
                    planned = ask.input_tokens, ask.output_tokens
                    assert (usage["prompt_tokens"], usage["completion_tokens"]) == planned, shape
                    text = answer["choices"][0].get("message", {}).get("content", "")
                    ask = asker.following(ask, seq, text)

    visit(story, engine=engine)
