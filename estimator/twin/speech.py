"""What a simulated model says: the text of each output token, and when it stops by itself."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from estimator.twin.ask import Ask
from estimator.twin.request import Prefix
from estimator.twin.tokens import MESSAGE_END, output_ids, text_of

REASONING_TOKENS: Final = 64
"""How long it thinks, where it does; the rest of the answer is content."""
TOOL_CALL_TOKENS: Final = 16
"""Length of a tool call of a model that otherwise never stops by itself."""
Part = Literal["content", "reasoning", "arguments"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """One choice of one answer: how many tokens it gets, why it ends, and what they say."""

    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    reasoning_tokens: int = 0
    tool: str | None = None
    eos: bool = False
    """The last token is the end mark: it counts and says nothing."""
    prefix: Prefix = ()
    """What names the blocks of its prompt and answer, where the server caches prefixes."""

    def pieces(self, first: int, count: int) -> Iterator[tuple[Part, str]]:
        """The text of output tokens `first` .. `first + count - 1`, cut where thinking ends."""
        if self.tool is not None:
            yield "arguments", self._arguments(first, first + count)
            return
        end = min(first + count, self.output_tokens - self.eos)
        thought = min(end, self.reasoning_tokens)
        if first < thought:
            yield "reasoning", text_of(first, thought - first)
        start = max(first, self.reasoning_tokens)
        if start < end or first >= thought:
            yield "content", text_of(start, max(0, end - start))

    @property
    def cacheable_tokens(self) -> int:
        """Tokens of the prompt that fill blocks others may find."""
        return max([tokens for _, tokens in self.prefix if tokens <= self.prompt_tokens], default=0)

    def output_ids(self) -> list[int]:
        """As the next turn's prompt has them; none of a tool call, which comes back in other words."""
        if self.tool is not None:
            return []
        return output_ids(self.output_tokens - self.eos) + [MESSAGE_END] * self.eos

    def part(self, part: Part) -> str:
        """All of one part."""
        return "".join(text for name, text in self.pieces(0, self.output_tokens) if name == part)

    def _arguments(self, first: int, end: int) -> str:
        if self.output_tokens < 3:
            return "{}" if first == 0 and self.eos else ""
        opening = '{"text":"' if first == 0 else ""
        # The token before the end mark closes the object; one cut by its length stays open, as it does.
        closes = self.eos and first < self.output_tokens - 1 <= end
        words_end = min(end, self.output_tokens - 2) if self.eos else end
        words = text_of(max(first, 1), max(0, words_end - max(first, 1)))
        return opening + json.dumps(words)[1:-1] + ('"}' if closes else "")


class Endings:
    """Draws where each answer ends; same seed and same order of requests, same lengths."""

    def __init__(self, mean_output_tokens: float | None, seed: int) -> None:
        self._mean = mean_output_tokens
        self._random = random.Random(seed)  # noqa: S311  (a simulation, not a secret)

    def speech(self, ask: Ask, prompt_tokens: int) -> Speech:
        """The end mark has the same chance at every token after min_tokens: a geometric length."""
        length = ask.min_tokens + self._until_eos(ask)
        eos = length <= ask.max_tokens
        finish = (ask.tool_finish if ask.tool else "stop") if eos else "length"
        output_tokens = int(length) if eos else ask.max_tokens
        return Speech(
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            finish_reason=finish,
            reasoning_tokens=min(REASONING_TOKENS, output_tokens - eos)
            if ask.reasoning and not ask.tool
            else 0,
            tool=ask.tool,
            eos=eos,
        )

    def _until_eos(self, ask: Ask) -> float:
        if ask.ignore_eos:
            return math.inf
        if self._mean is None:
            return TOOL_CALL_TOKENS if ask.tool else math.inf
        if self._mean <= 1.0:
            return 1
        return 1 + math.floor(math.log(1.0 - self._random.random()) / math.log1p(-1.0 / self._mean))
