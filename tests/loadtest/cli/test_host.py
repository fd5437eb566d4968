"""`ullage estimate` beside a running server and its log: what it says, what is learned, what is kept."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner

from loadtest.cli.estimate import estimate

QWEN = ("Qwen3-8B", "--gpu", "h100-80gb", "--max-model-len", "8192")
LOG = """\
INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='Qwen/Qwen3-8B', \
max_seq_len=8192, tensor_parallel_size=1, pipeline_parallel_size=1, enforce_eager=False
INFO [model_runner.py:424] Model loading took 15.27 GiB memory and 3.2 seconds
INFO [gpu_worker.py:1034] Free memory on device (78.57/79.19 GiB) on startup. Desired GPU memory \
utilization is (0.92, 72.85 GiB). Actual usage is 15.69 GiB for consumed memory (weights + non-torch), \
1.22 GiB for peak \
activation, and 0.61 GiB for CUDAGraph memory. Replace it. Current kv cache memory in use is 55.31 GiB.
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"ULLAGE_CALIBRATION": str(tmp_path / "calibration.json"), "ULLAGE_API_KEY": ""}


def run(environment: dict[str, str], *arguments: str) -> str:
    result = CliRunner().invoke(estimate, arguments, env=environment)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout  # what was learned is said on stderr


def line(facts: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(line for line in facts["ledger"]["lines"] if line["name"] == name)
    return found


def test_a_server_log_replaces_the_priors_now_and_later(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(LOG, encoding="utf-8")
    now = json.loads(run(environment, *QWEN, "--server-log", str(log), "--json"))
    assert line(now, "activation peak")["size_bytes"]["likely"] == round(1.22 * 2**30)
    assert line(now, "CUDA graphs")["source"].startswith("server log")
    assert line(now, "outside PyTorch")["size_bytes"]["likely"] == pytest.approx(0.42 * 2**30, abs=2)
    later = json.loads(run(environment, *QWEN, "--json"))
    assert line(later, "activation peak")["source"].startswith("calibrated (server log)")
    assert later["num_blocks"] == now["num_blocks"]
    assert not any("priors" in assumption for assumption in later["assumptions"])
    without = json.loads(run(environment, *QWEN, "--no-calibration", "--json"))
    assert line(without, "activation peak")["source"].startswith("prior")
    other = json.loads(run(environment, *QWEN, "--max-num-batched-tokens", "2048", "--json"))
    assert line(other, "activation peak")["source"].startswith("prior")


def test_turbominds_free_memory_replaces_the_prior_of_its_context(
    environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "lmdeploy.log"
    log.write_text("[TM][WARNING] Object cache budget: 51200.0 MB from free 64000.0 MB and ratio 0.8\n")
    asked = (*QWEN, "--engine", "lmdeploy")
    now = json.loads(run(environment, *asked, "--server-log", str(log), "--json"))
    assert line(now, "KV cache")["size_bytes"]["likely"] == pytest.approx(51_200 * 2**20, rel=1e-6)
    later = json.loads(run(environment, *asked, "--json"))
    assert line(later, "CUDA context")["source"].startswith("calibrated (server log), 20")
    assert not any("priors" in assumption for assumption in later["assumptions"])


def test_a_log_of_another_server_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(LOG.replace("tensor_parallel_size=1", "tensor_parallel_size=2"), encoding="utf-8")
    result = CliRunner().invoke(estimate, (*QWEN, "--server-log", str(log)), env=environment)
    assert "the log is of a server with --tp 2, not 1" in str(result.exception)


class Page(BaseHTTPRequestHandler):
    """A vLLM with 25,000 blocks, as its pages show it."""

    labels = (
        'block_size="16",gpu_memory_utilization="0.92",num_gpu_blocks="25000",num_gpu_blocks_override="None"'
    )

    def do_GET(self) -> None:
        answers = {
            "/v1/models": '{"data": [{"id": "Qwen/Qwen3-8B", "max_model_len": 8192}]}',
            "/version": '{"version": "0.32.0"}',
            "/metrics": f"vllm:cache_config_info{{{self.labels}}} 1.0\nvllm:num_requests_running 0.0\n",
        }
        body = answers[self.path].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it)
        """Quiet."""


@pytest.fixture
def host() -> Any:
    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_running_servers_blocks_stand_beside_ours_and_are_learned(
    environment: dict[str, str], host: str
) -> None:
    text = run(environment, *QWEN, "--host", host)
    assert "serves Qwen/Qwen3-8B, max_model_len 8,192" in text
    assert "inside our range" in text
    assert "kept" in text
    later = json.loads(run(environment, *QWEN, "--json"))
    assert abs(later["num_blocks"] - 25_000) <= 1
    assert later["intervals"]["num_blocks"]["high"] - later["intervals"]["num_blocks"]["low"] <= 1


def test_a_server_of_other_flags_teaches_nothing(environment: dict[str, str], host: str) -> None:
    run(environment, *QWEN, "--gpu-memory-utilization", "0.8", "--host", host)
    run(environment, *QWEN, "--kv-cache-memory-bytes", "20G", "--host", host)
    assert not Path(environment["ULLAGE_CALIBRATION"]).exists()


def test_a_server_alone_needs_no_model(environment: dict[str, str], host: str) -> None:
    facts = json.loads(run(environment, "--host", host, "--json"))
    assert (facts["server"]["num_gpu_blocks"], facts["estimate"]) == (25_000, None)
