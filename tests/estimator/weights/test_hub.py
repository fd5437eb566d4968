"""Headers from the hub by byte ranges, through an injected fetch: no network here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.request import Request

import pytest

from estimator.errors import EXIT_UNREACHABLE
from estimator.spec import SpecError
from estimator.weights.hub import (
    FIRST_BYTES,
    HUB,
    INDEX,
    SINGLE,
    HubUnreachable,
    OwnHostsOnly,
    check_own,
    tensors_on_hub,
)

REPO = "owner/model-1.5B"


class Store:
    """A hub of a few files, which remembers what was asked of it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = {f"{HUB}/{REPO}/resolve/main/{name}": content for name, content in files.items()}
        self.asked: list[tuple[str, int, int]] = []

    def fetch(self, url: str, start: int, end: int) -> bytes:
        self.asked.append((url.rpartition("/")[2], start, end))
        if url not in self.files:
            raise HubUnreachable(f"the hub does not give {url}: HTTP 404", 404)
        return self.files[url][start:end]


def safetensors(shapes: Mapping[str, list[int]]) -> bytes:
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2]} for name, shape in shapes.items()
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 100


def index(*files: str) -> bytes:
    return json.dumps({"weight_map": {str(number): file for number, file in enumerate(files)}}).encode()


def test_a_model_in_several_files_is_read_by_its_index() -> None:
    store = Store(
        {
            INDEX: index("a-1.safetensors", "a-2.safetensors", "a-1.safetensors"),
            "a-1.safetensors": safetensors({"x": [2, 3]}),
            "a-2.safetensors": safetensors({"y": [5]}),
        }
    )
    found = tensors_on_hub(REPO, fetch=store.fetch)
    assert {name: tensor.shape for name, tensor in found.items()} == {"x": (2, 3), "y": (5,)}
    assert [file for file, _, _ in store.asked] == [INDEX, "a-1.safetensors", "a-2.safetensors"]


def test_a_model_in_one_file_has_no_index() -> None:
    store = Store({SINGLE: safetensors({"x": [2]})})
    assert list(tensors_on_hub(REPO, fetch=store.fetch)) == ["x"]


def test_a_long_header_takes_one_more_request_and_no_weights() -> None:
    content = safetensors({f"tensor-{number}": [1] for number in range(6_000)})
    store = Store({SINGLE: content})
    assert len(tensors_on_hub(REPO, fetch=store.fetch)) == 6_000
    header_end = 8 + int.from_bytes(content[:8], "little")
    assert store.asked[1:] == [(SINGLE, 0, FIRST_BYTES), (SINGLE, FIRST_BYTES, header_end)]


@pytest.mark.parametrize(
    "content", [b"", b"\x01\x02", (2**62).to_bytes(8, "little"), (4).to_bytes(8, "little") + b"null"]
)
def test_a_file_that_is_not_safetensors_is_one_sentence(content: bytes) -> None:
    with pytest.raises(SpecError, match="not a safetensors file"):
        tensors_on_hub(REPO, fetch=Store({SINGLE: content}).fetch)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"weight_map": 3}',
        index("../../secret"),
        index("a.bin"),
        index("http://x/a.safetensors"),
    ],
)
def test_an_index_that_names_anything_else_is_refused(content: bytes) -> None:
    store = Store({INDEX: content})
    with pytest.raises(SpecError, match="index"):
        tensors_on_hub(REPO, fetch=store.fetch)
    assert len(store.asked) == 1


@pytest.mark.parametrize(
    "repo", ["model", "a/b/c", "../x", "a/..", "https://a/b", "a/b?x=1", "a/b#c", " a/b"]
)
def test_a_name_that_is_none_is_never_asked_for(repo: str) -> None:
    store = Store({})
    with pytest.raises(SpecError, match="OWNER/NAME"):
        tensors_on_hub(repo, fetch=store.fetch)
    assert store.asked == []


def test_an_answer_other_than_missing_is_passed_on() -> None:
    def fetch(url: str, start: int, end: int) -> bytes:
        raise HubUnreachable("it is gated or private", 401)

    with pytest.raises(HubUnreachable, match="gated") as refusal:
        tensors_on_hub(REPO, fetch=fetch)
    assert refusal.value.exit_code == EXIT_UNREACHABLE


@pytest.mark.parametrize("url", ["https://huggingface.co/a", "https://cas-bridge.xethub.hf.co/b"])
def test_the_hubs_own_hosts_are_followed(url: str) -> None:
    check_own(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://huggingface.co/a",
        "https://huggingface.co.evil.example/a",
        "https://evilhf.co/a",
        "https://user@169.254.169.254/a",
        "file:///etc/passwd",
        "https:///a",
    ],
)
def test_a_redirect_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(HubUnreachable, match="not its own"):
        OwnHostsOnly().redirect_request(Request(f"{HUB}/a"), None, 302, "Found", None, url)  # type: ignore[arg-type]
