"""Names of blocks: equal where vLLM would find them, and nowhere else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from estimator.twin.contents import prefix_of
from estimator.twin.engine import Engine
from estimator.twin.limits import EngineLimits
from estimator.twin.speech import Speech
from estimator.twin.tokens import MESSAGE_END, ids_of, ids_of_chat, text_of

IDS = st.lists(st.integers(0, 3), max_size=40)


@given(first=IDS, second=IDS, block=st.integers(1, 8))
def test_as_many_names_agree_as_whole_blocks_of_the_common_beginning(
    first: list[int], second: list[int], block: int
) -> None:
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    names = [prefix_of(ids, block) for ids in (first, second)]
    agree = sum(one == other for one, other in zip(*names, strict=False))
    assert agree == same // block
    assert [tokens for _, tokens in names[0]] == list(range(block, len(first) + 1, block))


def test_another_salt_shares_nothing() -> None:
    ids = list(range(12))
    assert not set(prefix_of(ids, 4)) & set(prefix_of(ids, 4, "salt"))
    assert prefix_of(ids, 4, "salt") == prefix_of(ids, 4, "salt")


def test_the_next_turn_of_a_talk_finds_prompt_and_answer() -> None:
    talk = [("system", "be brief"), ("user", "how full is the tank")]
    prompt = ids_of_chat(talk)
    said = Speech(prompt_tokens=len(prompt), output_tokens=30, finish_reason="stop", eos=True)
    answer = ("assistant", said.part("content"))
    after = ids_of_chat([*talk, answer, ("user", "and now")])
    assert after[: len(prompt) + 30] == prompt + said.output_ids()
    assert said.output_ids()[-1] == MESSAGE_END


def test_an_answer_cut_by_its_length_is_its_words() -> None:
    said = Speech(prompt_tokens=1, output_tokens=25, finish_reason="length")
    assert said.output_ids() == ids_of(text_of(0, 25))


def test_who_said_it_is_part_of_the_prompt() -> None:
    assert ids_of_chat([("user", "a")]) != ids_of_chat([("system", "a")])
    assert len(ids_of_chat([("user", "a b")])) == 2 + 4 + 3


def test_named_blocks_are_found_by_the_engine_up_to_the_first_that_differs() -> None:
    limits = EngineLimits(
        num_gpu_blocks=101,
        block_size=4,
        max_num_seqs=16,
        max_num_batched_tokens=64,
        max_model_len=256,
        enable_prefix_caching=True,
    )
    engine = Engine(limits)
    shared = list(range(100, 110))
    for name in ("a", "b"):
        ids = [*shared, *([ord(name)] * 10)]
        request = engine.add(name, len(ids), 2, prefix=prefix_of(ids, 4))
        while engine.has_work:
            engine.settle(engine.step())
    assert request.cached_tokens == 8
    assert engine.stats.prefix_cache_hits == 8
