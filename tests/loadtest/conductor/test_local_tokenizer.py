"""A tokenizer.json and a chat template count as the server does; what they lack is named."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner, Result
from twin_visits import visit

from estimator.twin.server import TwinServer
from loadtest.cli import main
from loadtest.conductor.audit.preflight import audit_answer
from loadtest.conductor.audit.sanity import Kind
from loadtest.conductor.fitting import fitted_to, words_for
from loadtest.conductor.local_tokenizer import LocalTokenizer, TokenizerError
from loadtest.conductor.server_facts import ServedModel
from loadtest.conductor.tokenizer import Tokenizer
from loadtest.origin import parse_origin
from loadtest.scenario import parse_scenario
from loadtest.workload.asker import open_workload

WORDS_COUNT: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": {"type": "BertProcessing", "sep": ["<e>", 1], "cls": ["<b>", 2]},
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "<e>": 1, "<b>": 2}, "unk_token": "[UNK]"},
}
"""Every word is a token, and a text on its own gets two marks."""
AS_THE_TWIN = (
    "{%- for one in messages %} <s> {{ one.role }} <n> {{ one.content }} <e>{% endfor %}"
    "{%- if tools %} {{ tools | tojson | length }}{% endif %}"
    "{%- if add_generation_prompt %} <s> assistant <n>{% endif %}"
)
NOBODY = "http://127.0.0.1:9"
CHAT = {"endpoint": "chat", "input_tokens": 60, "output_tokens": 4, "stages": [{"users": 1, "hold_s": 9}]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model whose template is that of the twin."""
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS_COUNT))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": AS_THE_TWIN}))
    return tmp_path


def counter(path: Path, **changes: Any) -> Any:
    return LocalTokenizer(path=str(path), model="m", engine="vllm", **changes).counter()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["scenario", "check", *arguments])


def test_a_text_is_counted_with_its_marks_and_messages_by_their_template(model: Path) -> None:
    count = counter(model)
    assert count("one two three") == 3 + 2
    assert count([{"role": "user", "content": "one two three"}]) == 4 + 3 + 3
    assert counter(model / "tokenizer.json")("one") == 3


def test_of_a_message_with_images_the_words_are_counted(model: Path) -> None:
    parts = [{"type": "text", "text": "one two"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    assert counter(model)([{"role": "user", "content": parts}]) == 4 + 2 + 3


def test_tools_reach_the_template(model: Path) -> None:
    own = LocalTokenizer(path=str(model), model="m", engine="vllm")
    messages = [{"role": "user", "content": "x"}]
    assert own.counter([{"type": "function"}])(messages) == own.counter()(messages) + 1


def test_the_template_may_lie_in_a_file_of_its_own_or_among_several(model: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    named = [{"name": "tool_use", "template": "a b"}, {"name": "default", "template": "a b c"}]
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert counter(model)(messages) == 3
    (model / "chat_template.jinja").write_text("{{ bos_token }} a")
    (model / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<b>"}}))
    assert counter(model)(messages) == 2


def test_what_is_sized_here_is_what_the_server_counts_though_it_was_never_asked(model: Path) -> None:
    nobody = Tokenizer(origin=parse_origin(NOBODY), key=None, model="tiny", engine="vllm")
    scenario = parse_scenario({"name": "n", "tokenizer": str(model), "session": {"turns": 2}, **CHAT})
    fitted = fitted_to(scenario, nobody, [ServedModel(name="tiny", max_model_len=2048)])
    words = words_for(fitted, nobody)
    asker = open_workload(fitted, model="tiny", run_id="r", worker=0, workers=1, chat=words)

    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        ask = asker.first(0)
        while ask is not None:
            body = {**ask.body, "stream": False, "stream_options": None}
            async with client.post("/v1/chat/completions", json=body) as response:
                answer = await response.json()
            assert answer["usage"]["prompt_tokens"] == ask.input_tokens
            ask = asker.following(ask, 1, answer["choices"][0]["message"]["content"])

    visit(story)


def test_scenario_check_counts_without_a_server(model: Path) -> None:
    talks = [
        {"conversations": [{"from": "human", "value": "a b c"}, {"from": "gpt", "value": "one " * 9}] * 2}
    ]
    (model / "talks.json").write_text(json.dumps(talks))
    file = model / "replay.yaml"
    body = {"name": "replay", "endpoint": "chat", "stages": CHAT["stages"], "session": {}}
    dataset = {"file": "talks.json", "format": "sharegpt", "unique": False}
    file.write_text(json.dumps({**body, "dataset": dataset, "tokenizer": "tokenizer.json"}))
    told = run(str(file), "--json")
    assert told.exit_code == 0, told.output
    seen = json.loads(told.output)
    # template 7 and 3 words; then 8 more for the two messages, 9 + 3 words
    assert (seen["input_tokens"]["mean"], seen["input_tokens"]["longest"]) == (20, 30)
    assert seen["output_tokens"]["longest"] == 9 + 2  # a text on its own has its marks
    first = seen["example"]["messages"]
    assert first == [{"role": "user", "content": "a b c"}]


def test_the_flag_stands_for_the_key(model: Path) -> None:
    file = model / "chat.yaml"
    file.write_text(json.dumps({"name": "chat", **CHAT}))
    told = run(str(file), "--tokenizer", str(model))
    assert "60 in the request below, 60 planned; its template adds 7" in " ".join(told.output.split())


def test_another_models_tokenizer_is_noticed_before_the_load(model: Path) -> None:
    (model / "chat_template.jinja").write_text(AS_THE_TWIN + " and more")

    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        async with client.get("/v1/models") as response:
            origin = parse_origin(str(response.url.origin()))
        kind = Kind(model="tiny", engine="vllm", endpoint="chat", tokenizer=str(model))
        checks = await asyncio.to_thread(audit_answer, origin, None, kind)
        lengths = next(check for check in checks if check.name == "lengths")
        assert lengths.level == "amber"
        assert "is not this model's tokenizer or chat template" in (lengths.fix or "")

    visit(story)


def test_without_the_package_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    def without(name: str) -> Any:
        raise ImportError(name)

    with pytest.raises(TokenizerError, match=r"pip install 'ullage\[tokenizers\]'$"):
        counter(tmp_path, import_module=without)


def test_what_is_missing_or_broken_is_one_sentence(model: Path) -> None:
    with pytest.raises(TokenizerError, match=r"there is no .*nowhere: give the folder"):
        counter(model / "nowhere")
    messages = [{"role": "user", "content": "x"}]
    config = model / "tokenizer_config.json"
    for text, sentence in (
        ("{}", "has no chat template"),
        ("[]", "is no JSON object"),
        ("{", "is not JSON"),
        (json.dumps({"chat_template": "{% if %}"}), "cannot write out the messages"),
        (json.dumps({"chat_template": "{{ raise_exception('roles must alternate') }}"}), "must alternate"),
        (json.dumps({"chat_template": "{{ messages.__class__.__mro__ }}"}), "cannot write out"),
    ):
        config.write_text(text)
        with pytest.raises(TokenizerError, match=sentence):
            counter(model)(messages)
    config.unlink()
    assert counter(model)("a text needs no template") == 7
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="is no tokenizer"):
        counter(model)
