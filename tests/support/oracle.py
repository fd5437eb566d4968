"""vLLM's own answers for many models: the whole set where it lies beside the checkout, else a small fixture.

An entry has the model's config.json, the arguments of the run and what vLLM 0.32 answered. `python
tests/support/oracle.py FOLDER` writes the fixture from the whole set: one entry of each kind, its config
reduced to the keys a reader looks at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
WHOLE = CHECKOUT.parent / "shared" / "oracle"
FIXTURE = CHECKOUT / "tests" / "fixtures" / "oracle" / "families.json"
GPUS = {"h100": "h100-80gb", "a100": "a100-80gb", "b200": "b200-180gb"}
KV_BYTES = 20 * 2**30
ANSWERS = (
    *("num_blocks", "bytes_per_block", "blocks_per_request", "kv_cache_size_tokens", "max_concurrency"),
    *("min_bytes_one_request", "block_size"),
)
NOT_READ = (
    *("initializer_range", "transformers_version", "auto_map", "use_cache", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "image_token_id", "video_token_id", "hidden_act", "rope_theta", "_name_or_path"),
    *(
        "attention_dropout",
        "rms_norm_eps",
        "router_aux_loss_coef",
        "output_router_logits",
        "vision_end_token_id",
    ),
    *(
        "num_sink_tokens",
        "unshifted_sink",
        "use_prefill_window_in_sink_attention",
        "sparsify",
        "window_length",
    ),
    *(
        "vision_start_token_id",
        "norm_topk_prob",
        "routed_scaling_factor",
        "label2id",
        "id2label",
        "torchscript",
    ),
)
KEPT = (
    *("Qwen--Qwen3-8B|base", "Qwen--Qwen3-8B|tp16", "Qwen--Qwen3-8B|tp2pp2", "Qwen--Qwen3-8B|kvturbo4"),
    *("Qwen--Qwen3-8B|eagle3", "Qwen--Qwen3-30B-A3B|base", "Qwen--Qwen3-VL-8B-Instruct|base"),
    *("MiniMaxAI--MiniMax-M2.5|base", "nvidia--Llama-3_3-Nemotron-Super-49B-v1|tp8"),
    *(
        "deepseek-ai--DeepSeek-V3|tp8pp2",
        "deepseek-ai--DeepSeek-V3|tp8dcp8",
        "deepseek-ai--DeepSeek-V3|tp8mtp1",
    ),
    *("deepseek-ai--DeepSeek-V3|b200tp8", "deepseek-ai--DeepSeek-V3.2|tp8kvfp8", "zai-org--GLM-5.2|base"),
    *("deepseek-ai--DeepSeek-V4-Flash|held", "google--gemma-4-26B-A4B|held", "openai--gpt-oss-120b|held"),
    *("google--gemma-4-26B-A4B|len128khyboff", "openai--gpt-oss-120b|pp2len128k", "gemma-3-27b-text|synth"),
    *("gemma-3n-E4B-text|synth", "XiaomiMiMo--MiMo-V2-Flash|tp4len128k", "mistral-7b-v0.1|synth"),
    *("meta-llama--Llama-4-Scout-17B-16E-Instruct|held", "whisper-large-v3|synth", "mamba2-2.7b|synth"),
    *("Qwen--Qwen3.5-27B|base", "qwen3-next-80b-a3b|synth-tp4nopc", "kimi-linear-48b-a3b|synth"),
    *("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16|held", "moonshotai--Kimi-K3|held"),
    *("Qwen--Qwen3-30B-A3B-FP8|base", "nvidia--MiniMax-M2.7-NVFP4|base", "qwen2.5-7b-w8a8-ct|synth"),
    *("qwen2.5-7b-w4a16-ct|synth", "moonshotai--Kimi-K2.5|tp8len128k"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run of vLLM's sizing: what it was given and what it answered."""

    name: str
    model: str
    config: Mapping[str, Any]
    arguments: Mapping[str, Any]
    answers: Mapping[str, Any]
    """The keys of ANSWERS, param_bytes of each stage, and the kinds of the groups."""
    held: tuple[Mapping[str, Any], ...]
    weights_reliable: bool

    @property
    def kind(self) -> str:
        """A word for the table of accuracy: what the layers keep."""
        return str(self.answers["kind"])


def entries() -> dict[str, Entry]:
    """By name; from the whole set when it is there."""
    if WHOLE.is_dir():
        return whole_set(WHOLE)
    facts = json.loads(FIXTURE.read_text(encoding="utf-8"))
    configs = facts["configs"]
    return {name: _entry(name, configs[body["config"]], body) for name, body in facts["entries"].items()}


def _entry(name: str, config: Mapping[str, Any], body: Mapping[str, Any]) -> Entry:
    return Entry(
        name=name,
        model=name.split("|")[0],
        config=config,
        arguments=body["arguments"],
        answers=body["answers"],
        held=tuple(body["held"]),
        weights_reliable=body["weights_reliable"],
    )


def whole_set(folder: Path) -> dict[str, Entry]:
    """Every built entry whose config is there."""
    found = {}
    results = json.loads((folder / "oracle.json").read_text(encoding="utf-8"))["results"]
    for name, result in results.items():
        config_file = folder / "configs" / f"{result['model']}_config.json"
        if result.get("ok", True) and config_file.exists():
            config = json.loads(config_file.read_text(encoding="utf-8"))
            quant = config_file.with_name(f"{result['model']}_hf_quant_config.json")
            if quant.exists() and not config.get("quantization_config"):
                config["quantization_config"] = json.loads(quant.read_text(encoding="utf-8"))
            if result["kw"].get("strip_quant"):
                config.pop("quantization_config", None)
            found[name] = _entry(name, config, _body(name, result))
    return found


def _body(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "arguments": _arguments(result),
        "answers": {key: result[key] for key in ANSWERS}
        | {"param_bytes": [stage["param_bytes"] for stage in result["weights"]], "kind": _kind(result)},
        "held": result.get("held", []),
        # published with trimmed quantisation files: their KV is right, their weights are not
        "weights_reliable": "Nemotron-3" not in name or "BF16" in name,
    }


def _arguments(result: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of EngineSpec, and `gpu`."""
    asked = result["kw"]
    arguments: dict[str, Any] = {
        "gpu": GPUS[asked.get("gpu", "h100")],
        "max_model_len": result["max_model_len"],
        "kv_cache_memory_bytes": result["kv_bytes"],
    }
    for theirs, ours in (
        *(("tp", "tp"), ("pp", "pp"), ("dcp", "dcp"), ("kv_dtype", "kv_cache_dtype")),
        *(("block_size", "block_size"), ("max_num_seqs", "max_num_seqs")),
        *(("max_num_batched_tokens", "max_num_batched_tokens"), ("prefix_caching", "enable_prefix_caching")),
        ("hybrid_off", "disable_hybrid_kv_cache_manager"),
    ):
        if theirs in asked:
            arguments[ours] = asked[theirs]
    if asked.get("usage") == "llm":
        arguments["usage"] = "llm_class"
    arguments |= asked.get("extra", {})
    if "spec" in asked:
        spec = asked["spec"]
        arguments["speculative"] = {key: spec[key] for key in ("method", "num_speculative_tokens")}
    return arguments


def _kind(result: Mapping[str, Any]) -> str:
    kinds = {spec["kind"].removesuffix("Spec") for spec in result["spec_table"]}
    if "deepseek_v4" in json.dumps(result["spec_table"]):
        return "DeepSeek-V4"
    for mark, word in (
        ("Mamba", "hybrid" if len(kinds) > 1 else "recurrent"),
        ("CrossAttention", "cross attention"),
        ("ChunkedLocalAttention", "chunked local"),
        ("SlidingWindow", "sliding window"),
    ):
        if mark in kinds:
            return word
    if "MLAAttention" in kinds:
        sparse = any(spec.get("cache_role", "").endswith("INDEXER") for spec in result["spec_table"])
        return "MLA and indexer" if sparse else "MLA"
    return "MHA, GQA, MQA"


def _condensed(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _condensed(value) for key, value in config.items() if key not in NOT_READ}
    if isinstance(config, list):
        return [_condensed(value) for value in config]
    return config


def main(folder: str) -> None:
    whole = whole_set(Path(folder))
    kept = {name: whole[name] for name in KEPT}
    body = {
        "source": "vLLM 0.32.0's own model classes and KV cache sizing; see docs/reference/estimator.md",
        "configs": {entry.model: _condensed(entry.config) for entry in kept.values()},
        "entries": {
            name: {
                "config": entry.model,
                "arguments": dict(entry.arguments),
                "answers": dict(entry.answers),
                "held": list(entry.held),
                "weights_reliable": entry.weights_reliable,
            }
            for name, entry in kept.items()
        },
    }
    FIXTURE.write_text(json.dumps(body, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
