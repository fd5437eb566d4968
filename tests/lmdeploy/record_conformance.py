"""Records the answers of LMDeploy's own HTTP server, over an engine of ours, into tests/fixtures/conformance.

LMDeploy's engines need a GPU; its API server, its AsyncEngine and its metrics do not. So all of those are
LMDeploy's code, and only what computes tokens is the stub below: one token every few milliseconds, and the
end mark first where it is allowed.

`python tests/lmdeploy/record_conformance.py --python PYTHON --lmdeploy FOLDER --model FOLDER`: a Python with
torch, transformers and fastapi, the folder lmdeploy was installed into (`pip install --no-deps --target`),
and a model folder made by tests/vllm/tiny_model.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

from conformance import Case, ask  # noqa: E402

FIXTURE: Final = ROOT / "tests/fixtures/conformance/lmdeploy-0.18.json"
METRICS: Final = ROOT / "tests/fixtures/metrics/lmdeploy-0.18-idle.txt"
KEY: Final = "sk-conformance"
"""Not a secret: the server it opens lives for a minute on loopback."""
START_S: Final = 120.0
C: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"
IDS: Final = {"model": "tiny", "prompt": "hello def foo", "max_tokens": 6, "ignore_eos": True}
HI: Final = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello def foo"}],
    "max_tokens": 6,
    "ignore_eos": True,
}
STREAM: Final = {"stream": True}
USAGE: Final = {"stream": True, "stream_options": {"include_usage": True}}
EOS: Final = {"ignore_eos": False}
PLAIN: Final = (
    Case(name="health", path="/health"),
    Case(name="models", path="/v1/models"),
    Case(name="no such path", path="/nothing"),
    Case(name="wrong method", path=C, method="GET"),
    Case(name="encode", path="/v1/encode", body={"input": "hello def foo"}),
    Case(name="encode several", path="/v1/encode", body={"input": ["hello", "def foo"]}),
    Case(name="encode nothing", path="/v1/encode", body={}),
    Case(name="encode a number", path="/v1/encode", body={"input": 5}),
    Case(name="completion", path=C, body=IDS),
    Case(name="completion stream", path=C, body={**IDS, **STREAM}),
    Case(name="completion stream usage", path=C, body={**IDS, **USAGE}),
    Case(name="completion eos", path=C, body={**IDS, **EOS}),
    Case(name="completion eos stream", path=C, body={**IDS, **EOS, **USAGE}),
    Case(name="completion several prompts", path=C, body={**IDS, "prompt": ["hello", "def foo"]}),
    Case(name="chat", path=CHAT, body=HI),
    Case(name="chat stream", path=CHAT, body={**HI, **STREAM}),
    Case(name="chat stream usage", path=CHAT, body={**HI, **USAGE}),
    Case(name="chat eos", path=CHAT, body={**HI, **EOS}),
    Case(name="chat eos stream", path=CHAT, body={**HI, **EOS, **USAGE}),
    Case(name="unknown model", path=C, body={**IDS, "model": "nope"}),
    Case(name="unknown model chat", path=CHAT, body={**HI, "model": "nope"}),
    Case(
        name="chat too long", path=CHAT, body={**HI, "messages": [{"role": "user", "content": "def " * 4000}]}
    ),
    Case(name="max_tokens 0", path=CHAT, body={**HI, "max_tokens": 0}),
    Case(name="temperature -1", path=CHAT, body={**HI, "temperature": -1}),
    Case(name="top_p 2", path=C, body={**IDS, "top_p": 2}),
    Case(name="n 0", path=CHAT, body={**HI, "n": 0}),
    Case(name="no messages", path=CHAT, body={"model": "tiny"}),
    Case(name="empty messages", path=CHAT, body={**HI, "messages": []}),
    Case(name="no prompt", path=C, body={"model": "tiny"}),
    Case(name="broken JSON", path=C, raw="{bad"),
    Case(name="wrong content type", path=C, raw="prompt=a", headers={"Content-Type": "text/plain"}),
)
KEYED: Final = (
    Case(name="no key", path="/v1/models"),
    Case(name="wrong key", path="/v1/models", headers={"Authorization": "Bearer nope"}),
    Case(name="right key", path="/v1/models", headers={"Authorization": f"Bearer {KEY}"}),
    Case(name="health without key", path="/health"),
    Case(name="metrics without key", path="/metrics", method="HEAD"),
)
GROUPS: Final[dict[str, tuple[tuple[str, ...], tuple[Case, ...]]]] = {
    "plain": ((), PLAIN),
    "api key": (("--api-key", KEY), KEYED),
}


def stub_of(config: Any) -> Any:
    """Both the engine and each of its request handles, as LMDeploy's AsyncEngine uses them."""
    from lmdeploy.messages import EngineOutput, ResponseType, ScheduleMetrics

    async def async_cancel(_: int) -> None:
        pass

    async def get_health_status() -> dict[str, Any]:
        return {"alive": True, "message": "", "schedule_metrics": ScheduleMetrics()}

    async def async_stream_infer(*_: Any, gen_config: Any, **__: Any) -> Any:
        if not gen_config.ignore_eos and gen_config.stop_token_ids:
            yield EngineOutput(ResponseType.FINISH, [gen_config.stop_token_ids[0]])
            return
        for number in range(gen_config.max_new_tokens):
            await asyncio.sleep(0.003)
            last = number + 1 == gen_config.max_new_tokens
            yield EngineOutput(ResponseType.FINISH if last else ResponseType.SUCCESS, [706 + number])

    stub = SimpleNamespace(engine_config=config, start_loop=lambda: True, close=lambda: None)
    stub.create_instance = lambda: stub
    stub.get_schedule_metrics = ScheduleMetrics
    stub.async_cancel = async_cancel
    stub.get_health_status = get_health_status
    stub.async_stream_infer = async_stream_infer
    return stub


def serve(model: str, port: int, api_key: str | None) -> None:
    """LMDeploy's own server over the stub; runs in the Python that has torch."""
    from lmdeploy import PytorchEngineConfig
    from lmdeploy.serve.core import AsyncEngine

    class Stubbed(AsyncEngine):  # type: ignore[misc,unused-ignore]
        def _build_pytorch(self, **how: Any) -> Any:
            return stub_of(how["backend_config"])

    api_server = importlib.import_module("lmdeploy.serve.openai.api_server")
    api_server.get_task = lambda *_, **__: (None, Stubbed)
    config = PytorchEngineConfig(session_len=2048, max_batch_size=128, enable_metrics=True)
    api_server.serve(
        model,
        model_name="tiny",
        backend="pytorch",
        backend_config=config,
        server_name="127.0.0.1",
        server_port=port,
        api_keys=[api_key] if api_key else None,
    )


def recorded(command: list[str], environment: dict[str, str], folder: Path) -> tuple[dict[str, Any], str]:
    """Every group's answers and the page of /metrics before any request."""
    groups: dict[str, Any] = {}
    page = ""
    for name, (flags, cases) in GROUPS.items():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = folder / "server.log"
        with log.open("wb") as out:
            server = subprocess.Popen(
                [*command, "--serve", str(port), *flags],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
            )
        try:
            _wait_until_ready(server, port, log)
            if not page:
                page = ask(port, Case(name="", path="/metrics").request())["body"]
            answers = [{"name": case.name, "request": case.request()} for case in cases]
            groups[name] = {
                "flags": list(flags),
                "answers": [one | ask(port, one["request"]) for one in answers],
            }
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait(timeout=10)
    return groups, page


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if ask(port, Case(name="", path="/health").request())["status"] == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"LMDeploy's server did not come up:\n{log.read_text(errors='replace')[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--lmdeploy", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--api-key", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        serve(str(flags.model), flags.serve, flags.api_key)
        return
    folders = ["--lmdeploy", str(flags.lmdeploy.absolute()), "--model", str(flags.model.absolute())]
    command = [str(flags.python.absolute()), str(Path(__file__).resolve()), *folders]
    environment = dict(os.environ, PYTHONPATH=str(flags.lmdeploy.absolute()), HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as folder:
        groups, page = recorded(command, environment, Path(folder))
    text = json.dumps({"server": "LMDeploy 0.18.0, stub engine", "groups": groups}, indent=1)
    FIXTURE.write_text(text.replace(str(flags.model.absolute()), "/models/tiny") + "\n", encoding="utf-8")
    METRICS.write_text(page.replace(str(flags.model.absolute()), "/models/tiny"), encoding="utf-8")


if __name__ == "__main__":
    main()
