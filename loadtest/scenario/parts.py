"""The parts of a scenario file: each checked at birth, each wrong value one sentence that names the fix."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from estimator.errors import PlainError
from estimator.spec import Lengths

STRICT: Final = {"extra": "forbid"}
"""Read by the validation library: a key that is not a field is refused by name."""
ArrivalKind = Literal["closed", "poisson", "gamma", "constant", "trace"]
ThinkKind = Literal["constant", "uniform", "exponential"]
IMAGE_SIDE_MAX: Final = 4096
DISTINCT_MAX: Final = 1000
"""Distinct lengths that are kept of a file; the ends are always among them."""
OWN_BODY_KEYS: Final = frozenset(
    ("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options")
)
"""What every request says for itself."""
MANY_ANSWERS_KEYS: Final = frozenset(("n", "best_of", "echo", "use_beam_search"))
"""What would make one request several, or give back more than was generated."""
OWN_HEADERS: Final = frozenset(
    ("host", "content-length", "content-type", "accept", "accept-encoding", "transfer-encoding", "connection")
)
SECRET: Final = re.compile(r"auth|cookie|secret|passw|credential|signature|api[-_]?key|(^|[-_])(token|key)$")
"""How the name of a header or key that carries a secret reads."""
HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class ScenarioError(PlainError, ValueError):
    """The scenario cannot be used: one sentence that names the key and the fix."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ScenarioError(message)


def require_positive(where: str, owner: object, *names: str) -> None:
    """Every named field that is set is above 0 and finite."""
    for name in names:
        value = getattr(owner, name)
        if value is not None:
            require(0 < value < math.inf, f"{where}{name} must be above 0, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step: hold a number of users for `hold_s` seconds; 0 users are a dip, in which nothing is asked.

    Give either `users`, or `of` and `ratio`: a share of the predicted limit, so that one scenario fits
    a laptop's twin and an eight-GPU server. of: guaranteed | saturation | slots. In an open loop requests
    come at `rate_per_s`, and the users are the most that may be in flight at once.
    """

    __pydantic_config__ = STRICT

    hold_s: float
    users: int | None = None
    of: Literal["guaranteed", "saturation", "slots"] | None = None
    ratio: float | None = None
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        require_positive("", self, "hold_s", "ratio", "rate_per_s")
        require(
            (self.users is None) != (self.of is None) and (self.of is None) == (self.ratio is None),
            "a stage takes either `users`, or `of` and `ratio`",
        )
        require(self.users is None or self.users >= 0, f"users must be at least 0, got {self.users}")

    @property
    def is_dip(self) -> bool:
        return self.users == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchAsked:
    """Instead of stages: the largest number of users that keeps the limits is found, a safe one proven."""

    __pydantic_config__ = STRICT

    max_minutes: float = 15.0
    start_users: int | None = None
    """None: the predicted limit."""
    users_max: int | None = None
    """None: four times the first level. A search that gets there reports a lower bound."""
    settle_min_s: float = 10.0
    """A level is not judged sooner, however short its requests are."""

    def __post_init__(self) -> None:
        require_positive("search.", self, "max_minutes", "start_users", "users_max", "settle_min_s")
        if self.start_users is not None and self.users_max is not None:
            require(
                self.start_users <= self.users_max,
                f"search.start_users {self.start_users} is above search.users_max {self.users_max}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """closed: a user sends when its last answer is over. The others are open loops, whoever still waits."""

    __pydantic_config__ = STRICT

    kind: ArrivalKind = "closed"
    burstiness: float = 1.0
    """Shape of gamma arrivals, as in `vllm bench serve`: 1 is Poisson, less comes in bursts."""

    def __post_init__(self) -> None:
        require_positive("arrivals.", self, "burstiness")
        require(
            self.kind == "gamma" or self.burstiness == 1.0,
            f"arrivals.burstiness belongs to kind gamma, not {self.kind}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """The beginning that the prompts of one group have in common: `tokens`, or a share of each prompt."""

    __pydantic_config__ = STRICT

    tokens: int | None = None
    share: float | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        require(
            (self.tokens is None) != (self.share is None), "shared_prefix takes either `tokens` or `share`"
        )
        require_positive("shared_prefix.", self, "tokens", "groups")
        require(
            self.share is None or 0 < self.share < 1,
            f"shared_prefix.share must be between 0 and 1, got {self.share}",
        )

    def shared_tokens(self, input_tokens: int) -> int:
        """How many of a prompt's tokens begin it as in every prompt of its group."""
        return self.tokens if self.tokens is not None else round((self.share or 0.0) * input_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Think:
    """How long a person reads before the next turn, seconds. uniform: from 0 to twice the mean."""

    __pydantic_config__ = STRICT

    kind: ThinkKind = "exponential"
    mean_s: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.mean_s < math.inf, f"think_s.mean_s must be at least 0, got {self.mean_s}")

    def drawn_s(self, rng: random.Random) -> float:
        if self.kind == "constant" or self.mean_s == 0:
            return self.mean_s
        if self.kind == "uniform":
            return rng.uniform(0.0, 2 * self.mean_s)
        return rng.expovariate(1.0 / self.mean_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A conversation: every turn sends all that was said before. turns: how many requests it has."""

    __pydantic_config__ = STRICT

    turns: Lengths | None = None
    """None: as many as the dataset's conversation has; there is one then."""
    answers: Literal["served", "recorded"] = "served"
    """What a later turn says was answered: what the server answered, or what the dataset holds."""
    think_s: Think = Think()
    context_tokens_max: int | None = None
    """The conversation ends before a turn that could grow beyond it, prompt and answer together."""

    def __post_init__(self) -> None:
        require_positive("session.", self, "context_tokens_max")

    def has_room(self, context_tokens: int) -> bool:
        """Whether a turn may let the conversation grow so long, prompt and answer together."""
        return self.context_tokens_max is None or context_tokens <= self.context_tokens_max

    def request_tokens_max(self, inputs: Lengths, outputs: Lengths) -> int:
        """The longest turn there can be, prompt and answer together."""
        assert self.turns is not None
        longest = self.turns.longest * (inputs.longest + outputs.longest)
        return min(longest, self.context_tokens_max or longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Pictures of random noise, each another one, that go with a chat request's words."""

    __pydantic_config__ = STRICT

    count: int = 1
    width: int
    height: int
    tokens_each: int
    """What the model makes of one, as its model card says: the words alone can be counted beforehand."""

    def __post_init__(self) -> None:
        require_positive("images.", self, "count", "tokens_each")
        require(self.count <= 64, f"images.count must be at most 64, got {self.count}")
        for name in ("width", "height"):
            side = getattr(self, name)
            require(1 <= side <= IMAGE_SIDE_MAX, f"images.{name} must be 1 to {IMAGE_SIDE_MAX}, got {side}")

    @property
    def tokens(self) -> int:
        return self.count * self.tokens_each


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShare:
    """A model or adapter, and the share of requests that ask for it, relative to the others."""

    __pydantic_config__ = STRICT

    name: str
    share: float = 1.0

    def __post_init__(self) -> None:
        require(bool(self.name), "name is empty")
        require_positive("", self, "share")


def stamp(file: str) -> int:
    """When the file was last written, nanoseconds: what was read of it before is good for so long.

    Raises ScenarioError when there is no such file.
    """
    try:
        return Path(file).stat().st_mtime_ns
    except (OSError, ValueError) as error:
        raise ScenarioError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error


def lengths_of(counts: Iterable[int]) -> Lengths:
    """The distribution that was seen: whole while it has few distinct values, else that of its quantiles."""
    seen = sorted(counts)
    if len(seen) > DISTINCT_MAX and len(set(seen)) > DISTINCT_MAX:
        seen = [seen[round(i * (len(seen) - 1) / (DISTINCT_MAX - 1))] for i in range(DISTINCT_MAX)]
    times = Counter(seen)
    return Lengths(kind="empirical", values=tuple(times), weights=tuple(map(float, times.values())))


def check_extra_body(body: Mapping[str, Any]) -> None:
    """Raises ScenarioError for a key that each request sets itself or that would make it several."""
    for key in body:
        require(key not in OWN_BODY_KEYS, f"extra_body: {key!r} is set by each request itself: leave it out")
        require(
            key not in MANY_ANSWERS_KEYS, f"extra_body: {key!r} would make one request several: leave it out"
        )
        _require_no_secret("extra_body", key)


def check_extra_headers(headers: Mapping[str, str]) -> None:
    """Raises ScenarioError for a name that is taken, a secret, or text that would break the request."""
    for name, value in headers.items():
        require(HEADER_NAME.fullmatch(name) is not None, f"extra_headers: {name!r} is no header name")
        require(
            name.lower() not in OWN_HEADERS, f"extra_headers: {name!r} is set by the client: leave it out"
        )
        _require_no_secret("extra_headers", name)
        require(
            value.isascii() and value.isprintable(),
            f"extra_headers: {name!r} must be one line of plain ASCII",
        )


def _require_no_secret(where: str, name: str) -> None:
    require(
        SECRET.search(name.lower()) is None,
        f"{where}: {name!r} reads like a secret, which a scenario never holds: set OPENAI_API_KEY instead",
    )
