"""What vLLM's and LMDeploy's start-up output says of memory, whatever stands around it."""

from __future__ import annotations

import pytest

from estimator.server_log import ServerLog, parse_server_log
from estimator.spec import SpecError
from estimator.units import GIB

VLLM = """\
(APIServer pid=11) INFO 11-21 04:47:18 [api_utils.py:347] version 0.32.0
(EngineCore pid=23) INFO 11-21 04:47:53 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: \
model='Qwen/Qwen3-8B', speculative_config=None, tokenizer='x', max_seq_len=8192, tensor_parallel_size=2, \
pipeline_parallel_size=1, enforce_eager=False, aux=Config(a=1, b=None), kv_cache_dtype=auto
(Worker pid=24) INFO 11-21 04:48:13 [model_runner.py:424] Model loading took 7.65 GiB memory and 3.2 seconds
(Worker pid=24) INFO 11-21 04:48:13 [gpu_worker.py:759] Available KV cache memory: 62.93 GiB
(EngineCore pid=23) INFO 11-21 04:48:13 [kv_cache_utils.py:2327] GPU KV cache size: 914,688 tokens, \
Maximum concurrency for 8,192 tokens per request: 111.66x
(Worker pid=24) INFO 11-21 04:48:20 [gpu_worker.py:971] CUDA graph pool memory: 0.41 GiB (actual), \
0.62 GiB (estimated), difference: 0.21 GiB (51.2%).
(Worker pid=24) INFO 11-21 04:48:20 [gpu_worker.py:1034] Free memory on device (78.57/79.19 GiB) on startup. \
Desired GPU memory utilization is (0.92, 72.85 GiB). Actual usage is 8.07 GiB for consumed memory (weights + \
non-torch), 1.23 GiB for peak activation, and 0.62 GiB for CUDAGraph memory. Replace gpu_memory_utilization \
config with `--kv-cache-memory=67500000000` (62.9 GiB) to fit into requested memory, or \
`--kv-cache-memory=73600000000` (68.5 GiB) to fully utilize gpu memory. Current kv cache memory in use is \
62.93 GiB.
"""


def test_every_figure_of_a_vllm_start_is_read_with_its_rounding() -> None:
    log = parse_server_log(VLLM.splitlines())
    assert (log.engine, log.version, log.model) == ("vllm", "0.32.0", "Qwen/Qwen3-8B")
    assert (log.tensor_parallel_size, log.pipeline_parallel_size, log.enforce_eager) == (2, 1, False)
    assert (log.kv_cache_size_tokens, log.max_concurrency, log.max_model_len) == (914_688, 111.66, 8192)
    assert log.gpu_memory_utilization == 0.92
    assert log.weights_bytes is not None
    assert log.weights_bytes.low == round(7.645 * GIB)
    assert log.weights_bytes.high == round(7.655 * GIB)
    assert log.total_bytes is not None
    assert log.total_bytes.likely == round(79.19 * GIB)
    assert log.cuda_graph_bytes is not None
    assert log.cuda_graph_bytes.likely == round(0.62 * GIB)
    assert log.cuda_graph_actual_bytes is not None
    assert log.cuda_graph_actual_bytes.likely == round(0.41 * GIB)


def test_growth_outside_pytorch_is_what_was_consumed_beyond_the_weights() -> None:
    grown = parse_server_log(VLLM.splitlines()).non_torch_bytes
    assert grown is not None
    assert grown.likely == pytest.approx(0.42 * GIB, abs=2)
    assert grown.high - grown.low == pytest.approx(0.02 * GIB, abs=4)


def test_older_vllm_prints_blocks_and_one_figure_a_line() -> None:
    log = parse_server_log(
        [
            "INFO [gpu_executor.py:102] # GPU blocks: 27,896, # CPU blocks: 2048",
            "INFO [kv_cache_utils.py:637] GPU KV cache size: 446,336 tokens",
            "INFO [kv_cache_utils.py:640] Maximum concurrency for 8,192 tokens per request: 54.48x",
        ]
    )
    assert (log.num_gpu_blocks, log.kv_cache_size_tokens, log.max_concurrency) == (27_896, 446_336, 54.48)


def test_a_second_start_in_the_same_file_replaces_the_first() -> None:
    log = parse_server_log([*VLLM.splitlines(), *VLLM.replace("7.65 GiB", "9.99 GiB").splitlines()[1:3]])
    assert log.weights_bytes is not None
    assert log.weights_bytes.likely == round(9.99 * GIB)
    assert log.kv_cache_bytes is None


def test_lmdeploys_lines_are_read_too() -> None:
    turbomind = parse_server_log(
        ["[TM][WARNING] Object cache budget: 51200.50 MB from free 64000.62 MB and ratio 0.8"]
    )
    assert (turbomind.engine, turbomind.free_ratio) == ("lmdeploy", 0.8)
    assert turbomind.kv_cache_bytes is not None
    assert turbomind.kv_cache_bytes.likely == round(51200.5 * 2**20)
    older = parse_server_log(["[TM][INFO] [BlockManager] max_block_count = 2451"])
    assert older.num_gpu_blocks == 2451
    pytorch = parse_server_log(
        ["Building CacheEngine with config: CacheConfig(max_batches=256, block_size=64, num_gpu_blocks=812)"]
    )
    assert (pytorch.num_gpu_blocks, pytorch.block_size) == (812, 64)


def test_a_file_without_a_known_line_is_refused_with_the_fix() -> None:
    with pytest.raises(SpecError, match="give the server's output from its start"):
        parse_server_log(["hello", "GET /metrics 200", "x" * 1_000_000])


def test_hostile_lines_cost_nothing() -> None:
    """A megabyte of digits and commas on a line of a known name is cut, not searched for minutes."""
    lines = ["KV cache size: " + "1,2" * 400_000 + " tokens", "Model loading took GiB", "GPU blocks: # x"]
    with pytest.raises(SpecError):
        parse_server_log(lines)
    assert ServerLog().non_torch_bytes is None
