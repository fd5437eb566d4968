"""Records one real vLLM answer per endpoint and error into tests/fixtures/conformance.

`python tests/vllm/record_conformance.py --python .venv-vllm/bin/python --model FOLDER`, about 3 minutes:
the server is started once for each group of flags. tests/vllm/tiny_model.py makes the model folder.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

import vllm_server  # noqa: E402
from conformance import Case, ask  # noqa: E402

FIXTURE: Final = ROOT / "tests/fixtures/conformance/vllm-0.32.json"
KEY: Final = "sk-conformance"
"""Not a secret: the server it opens lives for a minute on loopback."""
C: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"
HI: Final = {"messages": [{"role": "user", "content": "hello def foo"}], "max_tokens": 6, "ignore_eos": True}
IDS: Final = {"prompt": [5, 6, 7, 8], "max_tokens": 6, "ignore_eos": True}
STREAM: Final = {"stream": True}
USAGE: Final = {"stream": True, "stream_options": {"include_usage": True}}
EVERY: Final = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
EOS: Final = {"ignore_eos": False, "logit_bias": {"2": 100}}
TOOL: Final = {
    "type": "function",
    "function": {
        "name": "fill",
        "description": "Fills a tank.",
        "strict": True,
        "parameters": {"type": "object", "properties": {"full": {"type": "boolean"}}, "required": ["full"]},
    },
}
NAMED: Final = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "fill"}}}
REQUIRED: Final = {"tools": [TOOL], "tool_choice": "required"}
AUTO: Final = {"tools": [TOOL], "tool_choice": "auto"}
ROOM: Final = {"max_tokens": 512, "ignore_eos": False}
THINK: Final = {"chat_template_kwargs": {"enable_thinking": True}}
PLAIN: Final = {"chat_template_kwargs": {"enable_thinking": False}}

BASE: Final = (
    Case(name="health", path="/health"),
    Case(name="version", path="/version"),
    Case(name="models", path="/v1/models"),
    Case(name="ping", path="/ping"),
    Case(name="no such path", path="/nothing"),
    Case(name="wrong method", path=C, method="GET"),
    Case(name="wrong method on metrics", path="/metrics", body={}),
    Case(name="tokenize", path="/tokenize", body={"model": "tiny", "prompt": "hello def foo"}),
    Case(name="tokenize messages", path="/tokenize", body={"messages": HI["messages"]}),
    Case(name="tokenize strings", path="/tokenize", body={"prompt": "def foo", "return_token_strs": True}),
    Case(name="tokenize nothing", path="/tokenize", body={}),
    Case(name="tokenize unknown model", path="/tokenize", body={"model": "nope", "prompt": "a"}),
    Case(name="detokenize", path="/detokenize", body={"model": "tiny", "tokens": [5, 6, 7]}),
    Case(name="detokenize nothing", path="/detokenize", body={}),
    Case(name="detokenize text", path="/detokenize", body={"tokens": ["a"]}),
    Case(name="completion", path=C, body=IDS),
    Case(name="completion of text", path=C, body={**IDS, "prompt": "def foo"}),
    Case(name="completion stream", path=C, body={**IDS, **STREAM}),
    Case(name="completion stream usage", path=C, body={**IDS, **USAGE}),
    Case(name="completion stream running usage", path=C, body={**IDS, **EVERY}),
    Case(name="completion several prompts", path=C, body={**IDS, "prompt": [[5, 6], [7]]}),
    Case(name="completion eos", path=C, body={**IDS, **EOS}),
    Case(name="completion eos after min_tokens", path=C, body={**IDS, **EOS, "min_tokens": 3}),
    Case(name="completion eos stream", path=C, body={**IDS, **EOS, **USAGE, "min_tokens": 2}),
    Case(name="chat", path=CHAT, body=HI),
    Case(
        name="chat parts",
        path=CHAT,
        body={**HI, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    ),
    Case(name="chat stream", path=CHAT, body={**HI, **STREAM}),
    Case(name="chat stream usage", path=CHAT, body={**HI, **USAGE}),
    Case(name="chat stream running usage", path=CHAT, body={**HI, **EVERY}),
    Case(name="chat one token", path=CHAT, body={**HI, **USAGE, "max_tokens": 1}),
    Case(name="chat eos", path=CHAT, body={**HI, **EOS}),
    Case(name="chat eos stream", path=CHAT, body={**HI, **EOS, **USAGE, "min_tokens": 2}),
    Case(name="chat max_completion_tokens", path=CHAT, body={**HI, "max_completion_tokens": 2}),
    Case(name="chat named tool", path=CHAT, body={**HI, **NAMED, **ROOM}),
    Case(name="chat named tool stream", path=CHAT, body={**HI, **NAMED, **ROOM, **USAGE}),
    Case(name="chat required tool", path=CHAT, body={**HI, **REQUIRED, **ROOM}),
    Case(name="chat auto tool without a parser", path=CHAT, body={**HI, **AUTO}),
    Case(name="unknown model", path=C, body={**IDS, "model": "nope"}),
    Case(name="unknown model chat", path=CHAT, body={**HI, "model": "nope"}),
    Case(name="prompt too long", path=C, body={**IDS, "prompt": [5] * 2050}),
    Case(name="prompt fills the context", path=C, body={**IDS, "prompt": [5] * 2048}),
    Case(name="prompt and output too long", path=C, body={**IDS, "prompt": [5] * 2000, "max_tokens": 80}),
    Case(name="chat and output too long", path=CHAT, body={**HI, "max_tokens": 2047}),
    Case(
        name="chat too long",
        path=CHAT,
        body={**HI, "messages": [{"role": "user", "content": "def foo " * 2100}]},
    ),
    Case(name="max_tokens beyond the model", path=C, body={**IDS, "max_tokens": 3000}),
    Case(name="max_tokens 0", path=C, body={**IDS, "max_tokens": 0}),
    Case(name="max_tokens -1", path=C, body={**IDS, "max_tokens": -1}),
    Case(name="max_tokens text", path=C, body={**IDS, "max_tokens": "x"}),
    Case(name="min_tokens above max_tokens", path=C, body={**IDS, "min_tokens": 9}),
    Case(name="min_tokens -1", path=C, body={**IDS, "min_tokens": -1}),
    Case(name="temperature -1", path=C, body={**IDS, "temperature": -1}),
    Case(name="top_p 2", path=CHAT, body={**HI, "top_p": 2}),
    Case(name="n 0", path=C, body={**IDS, "n": 0}),
    Case(name="no prompt", path=C, body={"max_tokens": 4}),
    Case(name="empty prompt", path=C, body={**IDS, "prompt": ""}),
    Case(name="empty list of prompts", path=C, body={**IDS, "prompt": []}),
    Case(name="prompt of an odd type", path=C, body={**IDS, "prompt": {"a": 1}}),
    Case(name="no messages", path=CHAT, body={"max_tokens": 4}),
    Case(name="empty messages", path=CHAT, body={**HI, "messages": []}),
    Case(name="messages of text", path=CHAT, body={**HI, "messages": "hi"}),
    Case(
        name="stream_options without stream", path=C, body={**IDS, "stream_options": {"include_usage": True}}
    ),
    Case(
        name="stream_options without stream chat",
        path=CHAT,
        body={**HI, "stream_options": {"include_usage": True}},
    ),
    Case(name="stream_options of an odd type", path=C, body={**IDS, "stream": True, "stream_options": [1]}),
    Case(name="broken JSON", path=C, raw="{bad"),
    Case(name="no JSON object", path=C, body=[1]),
    Case(name="not UTF-8", path=C, raw='{"prompt":"\xff\xfe"}'),
    Case(name="wrong content type", path=C, raw="prompt=a", headers={"Content-Type": "text/plain"}),
    Case(name="empty body", path=C, raw=""),
)
KEYED: Final = (
    Case(name="no key", path="/v1/models"),
    Case(name="wrong key", path="/v1/models", headers={"Authorization": "Bearer nope"}),
    Case(name="wrong scheme", path="/v1/models", headers={"Authorization": f"Basic {KEY}"}),
    Case(name="right key", path="/v1/models", headers={"Authorization": f"Bearer {KEY}"}),
    Case(name="chat without key", path=CHAT, body=HI),
    Case(name="health without key", path="/health"),
    Case(name="version without key", path="/version"),
    Case(name="metrics without key", path="/metrics", method="HEAD"),
    Case(name="tokenize without key", path="/tokenize", body={"prompt": "a"}),
    Case(name="unknown path without key", path="/v1/nothing"),
)
PARSED: Final = (
    Case(name="thinking", path=CHAT, body={**HI, **THINK}),
    Case(name="thinking stream", path=CHAT, body={**HI, **THINK, **USAGE}),
    Case(name="not thinking", path=CHAT, body={**HI, **PLAIN}),
    Case(name="not thinking stream", path=CHAT, body={**HI, **PLAIN, **USAGE}),
    Case(name="named tool", path=CHAT, body={**HI, **NAMED, **ROOM, **PLAIN}),
    Case(name="named tool stream", path=CHAT, body={**HI, **NAMED, **ROOM, **PLAIN, **USAGE}),
    Case(name="required tool", path=CHAT, body={**HI, **REQUIRED, **ROOM, **PLAIN}),
    Case(name="required tool stream", path=CHAT, body={**HI, **REQUIRED, **ROOM, **PLAIN, **USAGE}),
    Case(name="auto tool, none called", path=CHAT, body={**HI, **AUTO, **PLAIN}),
    Case(name="auto tool, none called, stream", path=CHAT, body={**HI, **AUTO, **PLAIN, **USAGE}),
)
FULL: Final = (
    Case(name="full", path=C, body=IDS),
    Case(name="full, stream", path=C, body={**IDS, **USAGE}),
    Case(name="full, several prompts", path=C, body={**IDS, "prompt": [[5, 6], [7]]}),
    Case(name="full, chat", path=CHAT, body=HI),
    Case(name="full, chat stream", path=CHAT, body={**HI, **STREAM}),
    Case(name="full, and the model is unknown", path=C, body={**IDS, "model": "nope"}),
    Case(name="full, and the prompt too long", path=C, body={**IDS, "prompt": [5] * 2050}),
    Case(name="full, tokenize", path="/tokenize", body={"prompt": "def foo"}),
)
LONG: Final = {**IDS, "prompt": list(range(5, 105))}
CACHED: Final = (
    Case(name="new prompt", path=C, body=LONG),
    Case(name="known prompt", path=C, body=LONG),
    Case(name="known prompt of whole blocks", path=C, body={**LONG, "prompt": LONG["prompt"][:96]}),
    Case(name="another beginning", path=C, body={**LONG, "prompt": [4, *LONG["prompt"][1:]]}),
    Case(name="another salt", path=C, body={**LONG, "cache_salt": "salt"}),
    Case(name="known salt", path=C, body={**LONG, "cache_salt": "salt"}),
    Case(name="salt of no text", path=C, body={**LONG, "cache_salt": ""}),
    Case(name="known prompt, stream", path=C, body={**LONG, **USAGE}),
    Case(name="known prompt, running usage", path=C, body={**LONG, **EVERY}),
    Case(name="known and new prompt", path=C, body={**LONG, "prompt": [LONG["prompt"], [5, 6]]}),
    Case(name="chat with details", path=CHAT, body=HI),
    Case(name="chat with details, stream", path=CHAT, body={**HI, **USAGE}),
    Case(name="chat with details, running usage", path=CHAT, body={**HI, **EVERY}),
    Case(name="rank there is", path=C, body=LONG, headers={"X-data-parallel-rank": "0"}),
    Case(name="rank there is not", path=C, body=LONG, headers={"X-data-parallel-rank": "3"}),
    Case(name="rank of no number", path=C, body=LONG, headers={"X-data-parallel-rank": "first"}),
)
GROUPS: Final[dict[str, tuple[tuple[str, ...], tuple[Case, ...]]]] = {
    "plain": ((), BASE),
    "api key": (("--api-key", KEY), KEYED),
    "parsers": (
        (
            *("--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
            *("--stream-interval", "3"),
        ),
        PARSED,
    ),
    "full queue": (("--max-num-queued-reqs", "0"), FULL),
    "full prefill": (("--max-num-queued-tokens", "0"), FULL),
    "prefix cache": (("--enable-prefix-caching", "--enable-prompt-tokens-details"), CACHED),
}


def recorded(python: Path, model: Path, log: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """The groups' answers; each server is ended before the next one starts."""
    groups = {}
    for name in wanted:
        flags, cases = GROUPS[name]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = vllm_server.Vllm(host=f"http://127.0.0.1:{port}", log=log, model_folder=model)
        process = _start(python, server, port, flags)
        try:
            vllm_server.wait_until_ready(server, process)
            groups[name] = {
                "flags": list(flags),
                "answers": [
                    {"name": case.name, "request": case.request(), **ask(port, case.request())}
                    for case in cases
                ],
            }
        finally:
            vllm_server.end(process)
    return groups


def _start(
    python: Path, server: vllm_server.Vllm, port: int, flags: tuple[str, ...]
) -> subprocess.Popen[bytes]:
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(server.model_folder)]
    command += ["--served-model-name", "tiny", "--load-format", "dummy", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--no-enable-prefix-caching", *flags]
    command += [word for flag in vllm_server.FLAGS.items() for word in flag]
    environment = dict(os.environ, VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    with server.log.open("wb") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=0
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, default=vllm_server.VLLM_PYTHON)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--group", action="append", choices=GROUPS, help="record only these; others stay")
    flags = parser.parse_args()
    kept = json.loads(FIXTURE.read_text(encoding="utf-8"))["groups"] if flags.group else {}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        fresh = recorded(flags.python.absolute(), flags.model.absolute(), log, flags.group or list(GROUPS))
    text = json.dumps({"server": "vLLM 0.32.0", "groups": kept | fresh}, indent=1, ensure_ascii=True)
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    FIXTURE.write_text(text.replace(str(flags.model.absolute()), "/models/tiny") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
