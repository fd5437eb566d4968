"""Where a server is, and how its key is kept out of sight."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.access import Access
from loadtest.origin import ApiKey, OriginError, parse_origin, read_api_key, require_host_of_command


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


def test_a_key_is_looked_for_in_our_own_places_first_and_with_openai_last() -> None:
    every = {
        "ULLAGE_API_KEY": "sk-own",
        "ULLAGE_API_KEY_VARIABLE": "TEAM_KEY",
        "TEAM_KEY": "sk-team",
        "OPENAI_API_KEY": "sk-openai",
    }
    found = []
    for name in ("", "ULLAGE_API_KEY", "ULLAGE_API_KEY_VARIABLE", "OPENAI_API_KEY"):
        every.pop(name, None)
        key = read_api_key(every)
        found.append(None if key is None else key.header()[1])
    assert found == ["Bearer sk-own", "Bearer sk-team", "Bearer sk-openai", None]


def test_a_variable_named_by_an_option_goes_before_the_one_named_in_the_environment() -> None:
    environ = {"ULLAGE_API_KEY_VARIABLE": "TEAM_KEY", "TEAM_KEY": "sk-team", "MINE": "sk-mine"}
    key = read_api_key(environ, variable="MINE")
    assert key is not None
    assert key.header() == ("Authorization", "Bearer sk-mine")


def test_a_named_variable_that_is_not_set_is_refused_not_passed_over() -> None:
    with pytest.raises(OriginError, match="TEAM_KEY, which is not set: export it"):
        read_api_key({"OPENAI_API_KEY": "sk-openai"}, variable="TEAM_KEY")


@pytest.mark.parametrize("text", ["user:sk-CANARY@host:80", "http://u:sk-CANARY@host:99999", "//sk-CANARY@h"])
def test_what_may_be_a_password_is_not_repeated_in_a_refusal(text: str) -> None:
    with pytest.raises(OriginError) as caught:
        parse_origin(text)
    assert "CANARY" not in str(caught.value)


def test_only_scheme_host_and_port_make_the_same_server() -> None:
    server = parse_origin("https://llm.example/team")
    assert server.is_same_server(parse_origin("https://llm.example:443/metrics"))
    for other in ("http://llm.example:443", "https://llm.example:8443", "https://metrics.example"):
        assert not server.is_same_server(parse_origin(other))


@pytest.mark.parametrize("of_command", ["https://llm.example", ""])
def test_a_key_is_not_sent_to_a_host_typed_into_the_web_page(of_command: str) -> None:
    with pytest.raises(OriginError, match=r"elsewhere\.example:443\): start Locust with --host"):
        require_host_of_command("https://elsewhere.example", of_command, ApiKey("sk-CANARY"))


@pytest.mark.parametrize("host", ["https://llm.example", "https://llm.example:443/team"])
def test_the_server_of_the_command_line_gets_the_key(host: str) -> None:
    require_host_of_command(host, "https://llm.example", ApiKey("sk-CANARY"))


def test_without_a_key_any_host_may_be_typed() -> None:
    require_host_of_command("https://elsewhere.example", "https://llm.example", None)


def test_only_an_unverified_tls_server_is_warned_of() -> None:
    insecure = Access(insecure=True)
    assert "not verified" in (parse_origin("https://llm.example", insecure).warning or "")
    assert parse_origin("http://llm.example", insecure).warning is None
    assert parse_origin("https://llm.example").warning is None


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file")
    file.chmod(0o640)
    with pytest.raises(OriginError, match="chmod 600"):
        read_api_key({"ULLAGE_API_KEY_FILE": str(file)})


def test_a_key_never_shows_itself() -> None:
    key = ApiKey("sk-CANARY")
    assert "CANARY" not in f"{key!r} {key} {[key]}"


@pytest.mark.parametrize("value", ["", "a b", "a\nX-Other: 1", "a\x00", "a\u20ac"])
def test_a_key_that_would_break_a_header_is_refused(value: str) -> None:
    with pytest.raises(OriginError):
        ApiKey(value)
