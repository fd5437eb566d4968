"""One vLLM for all checks of this folder."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from vllm_server import ROOT, VLLM_PYTHON, Vllm, end, start, wait_until_ready


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    if not VLLM_PYTHON.is_file():
        pytest.skip("no vLLM environment: run `make vllm`")
    folder = tmp_path_factory.mktemp("vllm")
    model = folder / "tiny"
    subprocess.run([VLLM_PYTHON, ROOT / "tests/vllm/tiny_model.py", model], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Vllm(host=f"http://127.0.0.1:{port}", log=folder / "server.log", model_folder=model)
    process = start(server, port)
    try:
        wait_until_ready(server, process)
        yield server
    finally:
        end(process)
