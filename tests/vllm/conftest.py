"""One vLLM at a time for the checks: it has the machine to itself, and serves all who ask for its flags."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_server import VLLM_PYTHON, Machine, Vllm


@pytest.fixture(scope="session")
def vllm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models and logs of servers go."""
    if not VLLM_PYTHON.is_file():
        pytest.skip("no vLLM environment: run `make vllm`")
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def machine(vllm_folder: Path) -> Iterator[Machine]:
    machine = Machine(vllm_folder)
    yield machine
    machine.end()


@pytest.fixture(scope="module")
def vllm(machine: Machine) -> Vllm:
    return machine.server()
