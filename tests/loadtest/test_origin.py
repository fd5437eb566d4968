"""Where a server is, and how its key is kept out of sight."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.origin import ApiKey, OriginError, parse_origin, read_api_key


@pytest.mark.parametrize(
    ("text", "shown", "host_header"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://gw.local/llm/v1", "http://gw.local:80/llm", "gw.local"),
        ("https://gw.local", "https://gw.local:443", "gw.local"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_a_base_url_is_read_with_or_without_its_v1(text: str, shown: str, host_header: str) -> None:
    origin = parse_origin(text)
    assert (str(origin), origin.host_header) == (shown, host_header)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:8000",
        "ftp://x",
        "http://",
        "http://x:99999",
        "http://x?a=1",
        "http://x/#f",
        "http://[::1",
    ],
)
def test_what_is_no_base_url_is_refused(text: str) -> None:
    with pytest.raises(OriginError):
        parse_origin(text)


def test_a_password_in_the_url_is_refused_without_being_shown() -> None:
    with pytest.raises(OriginError) as caught:
        parse_origin("http://user:sk-CANARY@127.0.0.1:8000")
    assert "sk-CANARY" not in str(caught.value)
    assert "ULLAGE_API_KEY" in str(caught.value)


def test_a_key_comes_from_the_environment_or_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file\n")
    file.chmod(0o600)
    from_file = read_api_key({"ULLAGE_API_KEY_FILE": str(file)})
    from_variable = read_api_key({"ULLAGE_API_KEY": "sk-env", "ULLAGE_API_KEY_FILE": str(file)})
    assert from_file is not None
    assert from_variable is not None
    assert from_file.header() == ("Authorization", "Bearer sk-file")
    assert from_variable.header() == ("Authorization", "Bearer sk-env")
    assert read_api_key({}) is None


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file")
    file.chmod(0o640)
    with pytest.raises(OriginError, match="chmod 600"):
        read_api_key({"ULLAGE_API_KEY_FILE": str(file)})


def test_a_key_never_shows_itself() -> None:
    key = ApiKey("sk-CANARY")
    assert "CANARY" not in f"{key!r} {key} {[key]}"


@pytest.mark.parametrize("value", ["", "a b", "a\nX-Other: 1", "a\x00"])
def test_a_key_that_would_break_a_header_is_refused(value: str) -> None:
    with pytest.raises(OriginError):
        ApiKey(value)
