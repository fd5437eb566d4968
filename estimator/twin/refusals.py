"""What vLLM 0.32 answers to a request it does not take: an error body, in its own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Problem = Mapping[str, object]


class AskError(Exception):
    """A refused request: HTTP status and the fields of vLLM's error body."""

    problems: tuple[Problem, ...] = ()
    """What is wrong with the form of the body, where that is the reason."""

    def __init__(self, message: str, *, param: str | None, status: int = 400, kind: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.kind = kind or "BadRequestError"

    def body(self) -> dict[str, object]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}


def problem(field: str | None, kind: str, message: str, value: Any) -> Problem:
    """One finding as vLLM writes pydantic's: large inputs by their size only."""
    shown = value[:200] if isinstance(value, str) else value
    if isinstance(value, dict | list):
        shown = f"<{type(value).__name__} of {len(value)} items>"
    where = "body" if field is None else f"body.{field}"
    return {"type": kind, "loc": where, "msg": message, "input": shown}


def missing(field: str, fields: Mapping[str, Any]) -> Problem:
    return problem(field, "missing", "Field required", fields)


def invalid(*problems: Problem) -> AskError:
    """vLLM's answer to a body of the wrong form."""
    title = "1 validation error" if len(problems) == 1 else f"{len(problems)} validation errors"
    lines = "".join(f"\n  {dict(one)}" for one in problems)
    refusal = AskError(f"{title}:{lines}", param=str(problems[0]["loc"]), kind="Bad Request")
    refusal.problems = problems
    return refusal


def wrong_type() -> AskError:
    """The body's content type is not JSON."""
    said = "Unsupported Media Type: Only 'application/json' is allowed"
    refusal = AskError(f"1 validation error:\n  {said}", param=None, kind="Bad Request")
    refusal.problems = ({"loc": "body", "msg": said},)
    return refusal


def bad_json(position: int, reason: str) -> AskError:
    """What vLLM answers when the body is not JSON."""
    where = f"body.{position}"
    said = {"type": "json_invalid", "loc": where, "msg": "JSON decode error"}
    return invalid({**said, "input": "<dict of 0 items>", "ctx": {"error": reason}})


def no_body() -> AskError:
    return invalid(problem(None, "missing", "Field required", "None"))
