"""Makes a model small enough for a CPU: a 4-layer Qwen2 with a byte-level BPE tokenizer of 2,048 words.

Run by the Python of the vLLM environment: `python tests/vllm/tiny_model.py OUTPUT_DIR`. The weights are
made by vLLM itself (--load-format dummy), so the folder holds a config and a tokenizer only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 2048
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def training_text() -> Iterator[str]:
    """Any text does; ours is at hand and the same on every machine."""
    for folder in ("estimator", "loadtest", "tests", "docs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md"):
                yield path.read_text(encoding="utf-8")


def main(output: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "<unk>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    output.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        unk_token="<unk>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(output)
    config = json.loads((ROOT / "configs/models/tiny.json").read_text(encoding="utf-8"))
    (output / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
