"""Counts tokens here, with a tokenizer.json and its chat template, where a server has no page that counts.

Needs the optional package `tokenizers`; nothing is ever downloaded.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from estimator.errors import PlainError
from estimator.spec import EngineName
from loadtest.workload.prompts import Messages, Tokenize

TOKENIZER_FILE: Final = "tokenizer.json"
CONFIG_FILE: Final = "tokenizer_config.json"
TEMPLATE_FILE: Final = "chat_template.jinja"
FILE_BYTES_MAX: Final = 256 * 2**20
Import = Callable[[str], Any]


class TokenizerError(PlainError):
    """The tokenizer cannot be used: one sentence that names the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTokenizer:
    """As tokenizer.Tokenizer, without a server. path: the folder of a model, or its tokenizer.json.

    A text is counted with the marks that the tokenizer puts around it, as an engine takes a prompt; messages
    as the chat template writes them out, with the beginning of the answer.
    """

    path: str
    model: str
    engine: EngineName
    import_module: Import = importlib.import_module

    def counter(self, tools: Sequence[Mapping[str, Any]] = ()) -> Tokenize:
        """Raises TokenizerError where the package or a file is missing; so does the counter, for messages."""
        folder, file = _found(self.path)
        encode = _encoder(str(file), file.stat().st_mtime_ns, self.import_module)
        config = _config(folder)

        def tokenize(prompt: str | Messages) -> int:
            if isinstance(prompt, str):
                return _length(encode(prompt, add_special_tokens=True))
            return _length(encode(_written_out(folder, config, prompt, tools), add_special_tokens=False))

        return tokenize


def _length(encoding: Any) -> int:
    return len(encoding.ids)


def _found(path: str) -> tuple[Path, Path]:
    """The folder, and the tokenizer in it."""
    asked = Path(path)
    file = asked / TOKENIZER_FILE if asked.is_dir() else asked
    if not file.is_file():
        raise TokenizerError(f"there is no {file}: give the folder of a model, or its {TOKENIZER_FILE}")
    return file.parent, file


@lru_cache(maxsize=4)
def _encoder(file: str, _: int, import_module: Import) -> Callable[..., Any]:
    """Of one state of the file, which takes a second to read where the vocabulary is large."""
    try:
        package = import_module("tokenizers")
    except ImportError as error:
        raise TokenizerError(
            "a tokenizer of your own needs the package tokenizers: pip install 'ullage[tokenizers]'"
        ) from error
    try:
        encode: Callable[..., Any] = package.Tokenizer.from_str(_text(Path(file))).encode
    except Exception as error:  # the package raises nothing narrower
        raise TokenizerError(f"{file} is no tokenizer: {error}") from error
    return encode


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise TokenizerError(f"{file} is larger than {FILE_BYTES_MAX // 2**20} MiB")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read {file}: {error}") from error


def _config(folder: Path) -> Mapping[str, Any]:
    """tokenizer_config.json; {} where there is none, which is enough for plain texts."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{file} is no JSON object")
    return found


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    if (folder / TEMPLATE_FILE).is_file():
        return _text(folder / TEMPLATE_FILE)
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {one["name"]: one["template"] for one in found}.get("default")
    if not isinstance(found, str):
        raise TokenizerError(
            f"{folder} has no chat template: put the model's {CONFIG_FILE} or {TEMPLATE_FILE} beside "
            f"{TOKENIZER_FILE}, or use endpoint: completions"
        )
    return found


def _written_out(
    folder: Path, config: Mapping[str, Any], messages: Messages, tools: Sequence[Mapping[str, Any]]
) -> str:
    """What the engine would tokenize: the template's own marks are part of the text."""
    from jinja2 import TemplateError

    said = [{**message, "content": _words(message["content"])} for message in messages]
    try:
        text: str = _compiled(_template(folder, config)).render(
            messages=said,
            tools=list(tools) or None,
            add_generation_prompt=True,
            **{name: _mark(config.get(name)) for name in ("bos_token", "eos_token")},
        )
    except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise TokenizerError(
            f"the chat template in {folder} cannot write out the messages: {error}"
        ) from error
    return text


@lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    """In a sandbox: a template is a program that came with a model."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    world = ImmutableSandboxedEnvironment(  # autoescape would change what is counted
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    world.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    world.globals["raise_exception"] = _refuse
    world.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return world.from_string(template)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _mark(token: Any) -> str:
    """`<s>`, as its text or as an object that holds it."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _words(content: Any) -> str:
    """Of a message with images, its words."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
