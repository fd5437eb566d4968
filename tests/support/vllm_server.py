"""A real vLLM on the CPU with a cache small enough to fill: 512 blocks of 32 tokens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VLLM_PYTHON = ROOT / ".venv-vllm/bin/python"
START_S = 240.0
STARVED_NICENESS = 15
"""A thirtieth of the engine's turn: left to the scheduler, the front end got enough one time in five."""
FLAGS = {
    "--max-model-len": "2048",
    "--block-size": "32",
    "--num-gpu-blocks-override": "512",
    "--max-num-seqs": "128",
}
PLAIN = (*(word for flag in FLAGS.items() for word in flag), "--no-enable-prefix-caching")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """The running server: its address, its log and the model folder it serves."""

    host: str
    log: Path
    model_folder: Path


@contextlib.contextmanager
def running(
    folder: Path, model: str = "tiny", arguments: Sequence[str] = PLAIN, *, is_starved: bool = False
) -> Iterator[Vllm]:
    """A vLLM on a free port, ready to answer, and its end.

    is_starved: on two processors and in a session of its own, in which its engine comes before its front end.
    """
    model_folder = model_in(folder, model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Vllm(host=f"http://127.0.0.1:{port}", log=folder / "server.log", model_folder=model_folder)
    process = start(server, port, arguments, is_starved=is_starved)
    try:
        wait_until_ready(server, process)
        if is_starved:
            os.setpriority(os.PRIO_PROCESS, process.pid, STARVED_NICENESS)  # its main thread alone
        yield server
    finally:
        end(process)


class Machine:
    """A start takes most of a minute: the server stays until somebody asks for another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = contextlib.ExitStack()
        self._asked: tuple[str, tuple[str, ...]] | None = None

    def server(self, model: str = "tiny", arguments: Sequence[str] = PLAIN) -> Vllm:
        """The one that runs, or a new one where it is not of this model and these flags."""
        asked = (model, tuple(arguments))
        if self._asked != asked:
            self.end()
            self._vllm = self._running.enter_context(running(self._folder, model, arguments))
            self._asked = asked
        return self._vllm

    def end(self) -> None:
        self._asked = None
        self._running.close()


def model_in(folder: Path, model: str = "tiny") -> Path:
    """The folder of a model that tests/vllm/tiny_model.py makes."""
    model_folder = folder / model
    if not model_folder.is_dir():
        subprocess.run([VLLM_PYTHON, ROOT / "tests/vllm/tiny_model.py", model, model_folder], check=True)
    return model_folder


def start(
    server: Vllm, port: int, arguments: Sequence[str], *, is_starved: bool = False
) -> subprocess.Popen[bytes]:
    command = ["taskset", "--cpu-list", "0,1"] if is_starved else []
    command += [str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(server.model_folder), "--served-model-name", "tiny", "--load-format", "dummy"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", *arguments]
    environment = dict(os.environ, VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    with server.log.open("wb") as log:
        # A process group of its own, so that all of it can be ended; not a session of its own: the
        # kernel's autogroup scheduling would let the engine starve its API front end on two cores.
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=None if is_starved else 0,
            start_new_session=is_starved,
        )


def wait_until_ready(server: Vllm, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{server.host}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    tail = server.log.read_text(errors="replace")[-3000:]
    pytest.fail(f"vLLM did not come up in {START_S:.0f} s:\n{tail}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the whole group: an API server that dies alone leaves engine processes spinning."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
