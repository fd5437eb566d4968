"""Prefix caching where windows, chunks and states stand beside full attention. Blocks of 4 tokens."""

from __future__ import annotations

from typing import Any

import pytest

from estimator.kv_group import KvGroup
from estimator.spec import SpecError
from estimator.twin.engine import Engine, EngineLimits, Request
from estimator.twin.request import Prefix


def group(kind: Any, **more: Any) -> KvGroup:
    return KvGroup(**{"kind": kind, "block_size": 4, "layers": 1, "page_bytes": 0, **more})


FULL, WINDOW, CHUNK = group("full"), group("window", reach_tokens=8), group("chunk", reach_tokens=8)
STATE = group("state", state_blocks=1, rolls=True)
SAVED = group("state", state_blocks=1, rolls=True, checkpoint=True)


def engine(*groups: KvGroup, **changes: Any) -> Engine:
    limits: dict[str, Any] = {
        "num_gpu_blocks": 101,
        "block_size": 4,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "max_model_len": 256,
        "enable_prefix_caching": True,
    }
    return Engine(EngineLimits(**{**limits, **changes}, groups=groups))


def ask(twin: Engine, prompt_tokens: int, *prefix: tuple[str, int]) -> Request:
    """Served to its end, alone."""
    request = twin.add(f"r{twin.stats.finished.total()}", prompt_tokens, 2, prefix=prefix)
    while twin.has_work:
        twin.settle(twin.step())
    return request


@pytest.mark.parametrize("kept", [WINDOW, STATE, SAVED, CHUNK])
def test_the_same_prompt_is_found_again_up_to_its_last_whole_block(kept: KvGroup) -> None:
    twin = engine(FULL, kept)
    assert ask(twin, 20, ("same", 20)).cached_tokens == 0
    assert ask(twin, 20, ("same", 20)).cached_tokens == 16


def test_a_window_alone_is_found_too() -> None:
    twin = engine(WINDOW)
    ask(twin, 20, ("same", 20))
    assert ask(twin, 20, ("same", 20)).cached_tokens == 16


RULES = ("rules", 12)


@pytest.mark.parametrize("kept", [WINDOW, STATE])
def test_where_a_shared_beginning_ends_is_kept_from_the_second_that_shares_it_on(kept: KvGroup) -> None:
    twin = engine(FULL, kept)
    found: list[int] = []
    for name in ("a", "b", "c"):
        prefix: Prefix = (RULES, (name, 40))
        found.append(ask(twin, 30, *prefix).cached_tokens)
    assert found == [0, 0, 12]


@pytest.mark.parametrize(("interval_tokens", "found"), [(0, 0), (None, 12), (4, 12), (8, 8), (16, 0)])
def test_the_retention_interval_says_where_else_a_window_is_kept(
    interval_tokens: int | None, found: int
) -> None:
    one_block = group("window", reach_tokens=5)
    twin = engine(FULL, one_block, prefix_cache_retention_interval=interval_tokens)
    ask(twin, 30, RULES, ("a", 40))
    assert ask(twin, 30, RULES, ("b", 40)).cached_tokens == found


def test_a_found_window_takes_only_the_blocks_that_the_next_token_can_read() -> None:
    twin = engine(FULL, WINDOW, prefix_cache_retention_interval=None)
    ask(twin, 20, ("same", 20))
    again = twin.add("again", 20, 2, prefix=(("same", 20),))
    twin.step()
    full, window = again.tables
    assert [bool(block) for block in full.ids] == [True] * 5
    assert [bool(block) for block in window.ids] == [False, False, True, True, True]


def test_a_chunk_that_begins_anew_needs_nothing_of_the_chunks_before() -> None:
    twin = engine(FULL, CHUNK, num_gpu_blocks=13, max_model_len=24)
    ask(twin, 20, ("same", 20))
    twin.add("other", 12, 1)  # overwrites the blocks of chunks that were given back first
    twin.settle(twin.step())
    again = twin.add("again", 20, 2, prefix=(("same", 20),))
    twin.step()
    assert again.cached_tokens == 16
    assert [bool(block) for block in again.tables[1].ids] == [False] * 4 + [True]


def test_a_state_is_found_only_in_the_step_after_the_one_that_computes_it() -> None:
    admitted = {}
    for kept in (WINDOW, STATE):
        twin = engine(FULL, kept)
        for name in ("a", "b"):
            twin.add(name, 20, 2, prefix=(("same", 20),))
        steps = []
        for _ in range(2):
            steps.append(twin.step())
            twin.settle(steps[-1])
        admitted[kept.kind] = [[r.request_id for r in step.admitted] for step in steps]
    assert admitted == {"window": [["a", "b"], []], "state": [["a"], ["b"]]}


def test_groups_never_find_each_others_blocks() -> None:
    twin = engine(FULL, WINDOW)
    ask(twin, 20, ("same", 20))
    again = twin.add("again", 20, 2, prefix=(("same", 20),))
    twin.step()
    assert len(again.blocks) == len(set(again.blocks)) == 8


@pytest.mark.parametrize(
    ("groups", "changes", "sentence"),
    [
        ((FULL, group("window", block_size=8, reach_tokens=8)), {}, "of one block size, got"),
        ((FULL, group("cross", reach_tokens=8)), {}, "keep nothing that others could find"),
        ((FULL, group("state", state_blocks=1)), {}, "keep nothing that others could find"),
        (
            (FULL, WINDOW),
            {"prefix_cache_retention_interval": 6},
            "a multiple of 4 tokens, got 6",
        ),
    ],
)
def test_what_has_no_prefix_to_share_is_refused_with_a_sentence(
    groups: tuple[KvGroup, ...], changes: dict[str, int], sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence):
        engine(*groups, **changes)


def test_chunks_that_end_inside_a_block_do_not_find_what_was_never_computed() -> None:
    odd = group("chunk", reach_tokens=5)
    assert ask(engine(odd, odd), 20).cached_tokens == 0
