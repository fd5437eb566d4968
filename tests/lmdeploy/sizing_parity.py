"""LMDeploy's own sizing code against ours, without a GPU: prints each case, exit 1 at a difference.

Run it by an interpreter that has lmdeploy 0.18 and a CPU build of torch, from the checkout:
    PYTHONPATH=. python tests/lmdeploy/sizing_parity.py
The engine's classes are used as they are; only the reading of free memory is replaced by a number.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from lmdeploy.messages import QuantPolicy
from lmdeploy.pytorch.block import LogicalTokenBlocks
from lmdeploy.pytorch.config import CacheConfig, ModelConfig
from lmdeploy.pytorch.consts import dsa_packed_indexer_k_cache_shape
from lmdeploy.pytorch.engine.cache_engine.plan import build_block_cache_plan
from lmdeploy.pytorch.engine.cache_engine.schema import BlockCacheRequest
from lmdeploy.pytorch.engine.cache_engine.state import StateCacheEngine
from lmdeploy.pytorch.engine.executor.base import ExecutorBase
from lmdeploy.pytorch.paging.block_manager.window_block_manager import WindowBlockManager

from estimator.engine_spec import EngineSpec
from estimator.kv_group import KvGroup
from estimator.lmdeploy.paging import page_of
from estimator.lmdeploy.pytorch_engine import DECODED_TOKENS, reserve, state_slot_bytes
from estimator.lmdeploy.storage import PYTORCH_FORMATS
from estimator.memory import EngineLimits
from estimator.model import Attention, Cache, IndexerKeys, LatentAttention, Layer, ModelSpec, RecurrentState
from estimator.units import MIB

VOCABULARY = 151_936
LAYERS = 36
GQA = Attention(kv_heads=8, head_size=128, head_size_v=128)
MLA = LatentAttention(latent_size=512, rope_size=64)
SPARSE = (replace(MLA, sparse=True), IndexerKeys(head_size=128))
GDN = RecurrentState(mixer="gdn", heads=32, head_size=128, groups=16, state_size=128, conv_kernel=4)
POLICIES = {"auto": 0, "int4": 4, "int8": 8, "fp8": 16, "fp8_e5m2": 17, "turbo_quant": 42}
WINDOW = 4096


def ours(*caches: Cache) -> ModelSpec:
    return ModelSpec(
        name="model",
        architecture="Qwen3_5ForConditionalGeneration",
        model_type="any",
        dtype="bfloat16",
        quantisation=None,
        hidden_size=4096,
        intermediate_size=12288,
        vocab_size=VOCABULARY,
        attention_heads=32,
        context_tokens_max=40_960,
        tie_word_embeddings=False,
        layers=(Layer(caches=caches),) * LAYERS,
    )


def theirs(*, latent: bool = False, heads: int = 8, **fields: Any) -> ModelConfig:
    sizes = {"head_dim": 576, "k_head_dim": 576, "v_head_dim": 0} if latent else {"head_dim": 128}
    key_size = sizes["head_dim"]
    known = {"k_head_dim": key_size, "v_head_dim": key_size, **sizes, **fields}
    return ModelConfig(
        hidden_size=4096,
        num_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=heads,
        bos_token_id=0,
        eos_token_id=[0],
        dtype=torch.bfloat16,
        vocab_size=VOCABULARY,
        **known,
    )


def cache_config(policy: int = 0, batch: int = 384) -> CacheConfig:
    return CacheConfig(
        max_batches=batch, block_size=64, num_cpu_blocks=0, num_gpu_blocks=0, quant_policy=QuantPolicy(policy)
    )


def indexer_requests(_context: object) -> list[BlockCacheRequest]:
    shape = dsa_packed_indexer_k_cache_shape(64, 128)
    return [BlockCacheRequest(name="keys", shape=shape, dtype=torch.uint8, per_row_contiguous=True)] * LAYERS


class Executor(ExecutorBase):
    """LMDeploy's arithmetic over a given amount of free memory."""

    def __init__(self, free_bytes: int, model: ModelConfig, cache: CacheConfig) -> None:
        self.free_bytes, self.model_config, self.cache_config = free_bytes, model, cache
        self.specdecode_config, self.misc_config = None, SimpleNamespace(memdecode_config=None)

    def gather_free_mem(self) -> list[int]:
        return [self.free_bytes]

    def _maybe_disable_unsupported_prefix_caching(self) -> None: ...

    def _prepare_worker_cache_plans(self, cache: CacheConfig, _draft: object = None) -> list[Any]:
        return [
            SimpleNamespace(total=build_block_cache_plan(self.model_config, cache, 1).logical_block_nbytes)
        ]

    def set_cache_config(self, *_configs: object) -> None: ...

    def set_model_config(self, *_configs: object) -> None: ...


def started(free_bytes: int, batch: int) -> tuple[int, int]:
    """(blocks, prefill tokens) that LMDeploy ends with; (0, 0) where it stops."""
    cache = cache_config(batch=batch)
    try:
        Executor(free_bytes, theirs(), cache).update_configs()
    except RuntimeError:
        return 0, 0
    return cache.num_gpu_blocks, cache.max_prefill_token_num


def reserved(free_bytes: int, batch: int) -> tuple[int, int]:
    limits = EngineLimits(
        max_model_len=8192,
        max_num_seqs=batch,
        max_num_batched_tokens=8192,
        block_size=64,
        memory_share=0.8,
    )
    found = reserve(free_bytes, ours(GQA), limits, 9 * MIB)
    return (found.blocks, found.prefill_tokens) if found.blocks else (0, 0)


def held_by_lmdeploy(tokens: int) -> list[int]:
    manager = WindowBlockManager(tokens, 0, WINDOW, 1)
    sequence = SimpleNamespace(
        block_size=64, logical_blocks=LogicalTokenBlocks(), num_ignored_history=0, kv_token_limit=None
    )
    held = []
    for known in range(1, tokens + 1):
        sequence.num_history_ids, sequence.num_all_ids = known - 1, known
        manager.allocate_msg(sequence)
        held.append(len(sequence.logical_blocks))
    return held


def cases() -> list[tuple[str, object, object]]:
    """(what, LMDeploy's, ours)."""
    found: list[tuple[str, object, object]] = []
    for name, policy in POLICIES.items():
        stored = PYTORCH_FORMATS[name]
        for tp, heads in ((1, 8), (4, 8), (16, 16)):
            plan = build_block_cache_plan(theirs(heads=heads), cache_config(policy), tp)
            page = page_of(ours(GQA), 64, EngineSpec(tp=tp), stored)
            found.append((f"block, {name}, tp {tp}", plan.logical_block_nbytes, page.block_bytes))
        if name != "turbo_quant":
            plan = build_block_cache_plan(theirs(latent=True, heads=1), cache_config(policy), 1)
            page = page_of(ours(MLA), 64, EngineSpec(), stored)
            found.append((f"latent block, {name}", plan.logical_block_nbytes, page.block_bytes))
    for name, kept in (("auto", "bfloat16"), ("fp8", "fp8_ds_mla")):
        model = theirs(latent=True, heads=1, mla_kv_cache_dtype=kept, mla_index_topk=2048)
        plan = build_block_cache_plan(model, cache_config(), 1, indexer_requests)
        page = page_of(ours(*SPARSE), 64, EngineSpec(), PYTORCH_FORMATS[name])
        found.append((f"sparse latent block, {name}", plan.logical_block_nbytes, page.block_bytes))
    shapes = [
        ((LAYERS, 8192, 4), torch.bfloat16),
        ((LAYERS, 32, 128, 128), torch.bfloat16),
    ]
    slot_bytes = state_slot_bytes(ours(GDN), EngineSpec())
    found.append(("state slot", StateCacheEngine.get_state_slot_nbytes(shapes), slot_bytes))
    edge_bytes = (8192 + 256) * VOCABULARY * 2
    for batch, free_bytes in (
        (384, 68_067_694_592),
        *((128, edge_bytes + extra * MIB) for extra in (0, 30, 45, 179, 180, 500, 5000)),
    ):
        found.append(
            (f"start with {free_bytes} free", started(free_bytes, batch), reserved(free_bytes, batch))
        )
    group = KvGroup(kind="window", block_size=64, layers=1, page_bytes=1, reach_tokens=WINDOW + 1)
    held = [group.held(tokens, DECODED_TOKENS) for tokens in range(1, 20_001)]
    found.append(("blocks behind a window", held_by_lmdeploy(20_000), held))
    return found


def main() -> int:
    different = 0
    for what, lmdeploys, our_own in cases():
        same = lmdeploys == our_own
        different += not same
        shown = str(our_own)[:40]
        print(f"{'same ' if same else 'DIFFERENT'} {what}: {shown}{'' if same else f' not {lmdeploys}'}")
    print(f"{different} differences")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
