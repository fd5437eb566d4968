"""Weights from safetensors headers: what a checkpoint really stores, laid out as the engine divides it.

Tensors are gathered by the module they belong to. A module's bytes are divided as the arithmetic divides
its matrices, so the answer is exact where both agree and follows the checkpoint where it holds more.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from estimator.engine_spec import EngineSpec
from estimator.model import Matrix, ModelSpec
from estimator.spec import SpecError
from estimator.weights.kv_scales import scale_bytes
from estimator.weights.rank import Held, RankBytes, stages
from estimator.weights.schemes import ROOTS, checkpoint_modules

HEADER_BYTES_MAX: Final = 100_000_000
"""The safetensors format's own limit."""
DTYPE_BYTES: Final[Mapping[str, int]] = {
    dtype: size
    for size, dtypes in (
        (8, ("F64", "I64", "U64")),
        (4, ("F32", "I32", "U32")),
        (2, ("F16", "BF16", "I16", "U16")),
        (1, ("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL")),
    )
    for dtype in dtypes
}
FLOATS: Final = ("F64", "F32", "F16", "BF16")
OUTSIDE: Final = ""
"""The prefix of what belongs to no layer."""
_NOT_LOADED: Final = re.compile(r"rotary_emb|\bmtp|\bg_idx$")
_LAYER: Final = re.compile(r"layers\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One entry of a safetensors header; `end` is where its data stops, in bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    end: int

    @classmethod
    def parse(cls, entry: Any) -> Tensor:
        """Raises ValueError, TypeError, KeyError or IndexError where the entry is none."""
        shape = tuple(int(size) for size in entry["shape"])
        if entry["dtype"] not in DTYPE_BYTES or min(shape, default=1) < 1:
            raise ValueError(entry)
        return cls(dtype=entry["dtype"], shape=shape, end=int(entry["data_offsets"][1]))

    @property
    def elements(self) -> int:
        return prod(self.shape)


def read_folder(files: Iterable[Path]) -> dict[str, Tensor]:
    """Tensors of all `files` by name. Raises SpecError naming a file that is broken."""
    return {name: tensor for file in files for name, tensor in read_header(file).items()}


def read_header(file: Path) -> dict[str, Tensor]:
    """Tensors of one file by name. Source: the safetensors format, an 8-byte length and a JSON header.

    Raises SpecError when the file is cut short or is not safetensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(HEADER_BYTES_MAX, size - 8):
                raise broken(file.name)
            tensors = parse_header(stream.read(length), file.name)
    except OSError as error:
        raise SpecError(f"cannot read {file.name}: {error.strerror or error}") from None
    if size < 8 + length + max((tensor.end for tensor in tensors.values()), default=0):
        raise broken(file.name)
    return tensors


def parse_header(text: bytes, name: str) -> dict[str, Tensor]:
    """The JSON of a safetensors header. Raises SpecError when it is none."""
    try:
        header = json.loads(text)
        return {key: Tensor.parse(entry) for key, entry in header.items() if key != "__metadata__"}
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
        raise broken(name) from None


def broken(name: str) -> SpecError:
    return SpecError(f"{name} is cut short or not a safetensors file; download it again")


def stored_bytes(
    model: ModelSpec,
    engine: EngineSpec,
    tensors: Mapping[str, Tensor],
    compute_capability: tuple[int, int] | None,
) -> tuple[int, ...]:
    """Bytes on a rank of each pipeline stage of the checkpoint that has these tensors.

    Draft layers are counted by arithmetic: checkpoints store them under names of their own.
    """
    rank = RankBytes(model, engine, compute_capability)
    by_prefix = _gathered(model, tensors)
    ends = _owners((*model.before, *model.after))
    unknown = {path for path in by_prefix[OUTSIDE] if not _owner_of(path, ends)}

    def held_bytes(number: int, held: Held) -> int:
        if held.is_draft:
            return sum(rank.on_rank(held.prefix, matrix) for matrix in held.matrices)
        owners = _owners(held.matrices)
        inside = {
            path: tensor
            for path, tensor in by_prefix[held.prefix].items()
            if held.prefix != OUTSIDE or _owner_of(path, owners) or (number == 0 and path in unknown)
        }
        return _held_bytes(rank, held, owners, inside)

    return tuple(
        sum(scale_bytes(held.caches, model.quantisation) + held_bytes(number, held) for held in stage)
        for number, stage in enumerate(stages(model, engine))
    )


def _gathered(model: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the prefix of their layer and their path inside it, without those that are never loaded."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if _NOT_LOADED.search(name) or (model.tie_word_embeddings and "lm_head." in name):
            continue
        prefix, path = _placed(name)
        found[prefix][path] = tensor
    return found


def _placed(name: str) -> tuple[str, str]:
    """(prefix of its layer, or none, and the path inside)."""
    root = max((root for root in ROOTS if name.startswith(root)), key=len)
    path = name.removeprefix(root)
    layer = _LAYER.match(path)
    return (layer[0], path[layer.end() :]) if layer else (OUTSIDE, path)


def _owners(matrices: Iterable[Matrix]) -> dict[str, str]:
    """The engine's module that holds each module of the checkpoint."""
    found: dict[str, str] = {}
    for matrix in matrices:
        merged, *parts = checkpoint_modules(matrix.name.removesuffix(".bias"))
        found |= dict.fromkeys((merged, *parts), merged)
    return found


def _held_bytes(rank: RankBytes, held: Held, owners: Mapping[str, str], tensors: Mapping[str, Tensor]) -> int:
    """Module by module; what matches no module is divided as the modules are that nothing matched."""
    modules: dict[str, list[Matrix]] = defaultdict(list)
    for matrix in held.matrices:
        modules[checkpoint_modules(matrix.name.removesuffix(".bias"))[0]].append(matrix)
    stored: dict[str, int] = defaultdict(int)
    for path, tensor in tensors.items():
        module = _owner_of(path, owners)
        stored[module] += _tensor_bytes(rank, held.prefix, modules.get(module, ()), tensor)
    unmatched = [matrix for module, ones in modules.items() if module not in stored for matrix in ones]
    total = sum(
        _divided(rank, held.prefix, modules[module], size) for module, size in stored.items() if module
    )
    return total + _divided(rank, held.prefix, unmatched, stored.get("", 0))


def _owner_of(path: str, owners: Mapping[str, str]) -> str:
    """The module that holds a tensor: its own path, or the nearest above it; empty when none is known."""
    while path:
        if path in owners:
            return owners[path]
        path = path.rpartition(".")[0]
    return ""


def _tensor_bytes(rank: RankBytes, prefix: str, matrices: Iterable[Matrix], tensor: Tensor) -> int:
    """Floats of modules that are not quantised are loaded in the engine's own width."""
    plain = next((matrix for matrix in matrices if rank.scheme_of.module(prefix, matrix) is None), None)
    if plain is not None and tensor.dtype in FLOATS:
        return tensor.elements * plain.element_bytes
    return tensor.elements * DTYPE_BYTES[tensor.dtype]


def _divided(rank: RankBytes, prefix: str, matrices: Iterable[Matrix], size_bytes: int) -> int:
    ones = tuple(matrices)
    whole = sum(rank.whole(prefix, matrix) for matrix in ones)
    if whole == 0:
        return size_bytes
    return size_bytes * sum(rank.on_rank(prefix, matrix) for matrix in ones) // whole
