"""Whom to believe and whom to load: certificates, public addresses, the cap on users."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from certificates import self_signed

from loadtest.access import (
    Access,
    AccessError,
    client_context,
    public_address,
    require_below_cap,
    require_consent,
)


def resolving(*addresses: str) -> Any:
    def resolve(host: str, port: object, **_: object) -> list[Any]:
        if not addresses:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

    return resolve


def test_a_tls_client_verifies_certificate_and_name_and_takes_nothing_below_1_2() -> None:
    context = client_context(Access())
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_only_insecure_verifies_nothing() -> None:
    context = client_context(Access(insecure=True))
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_ca_file_stands_in_place_of_the_systems_certificates(tmp_path: Path) -> None:
    _, certificate = self_signed(tmp_path)
    believed = client_context(Access(ca_file=str(certificate))).get_ca_certs()
    assert [dict(pair[0] for pair in one["subject"])["commonName"] for one in believed] == ["localhost"]


def test_ssl_cert_file_is_honoured_where_no_ca_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert any(
        ("commonName", "localhost") in one["subject"][0] for one in client_context(Access()).get_ca_certs()
    )


def test_a_ca_file_without_a_certificate_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with pytest.raises(
        AccessError, match=r"ca\.pem: No such file or directory; name a PEM file with --ca-file"
    ):
        client_context(Access(ca_file=str(file)))
    file.write_text("no certificate")
    with pytest.raises(AccessError, match=r"ca\.pem"):
        client_context(Access(ca_file=str(file)))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.9",
        "172.20.0.2",
        "169.254.1.1",
        "100.100.1.1",
        "::1",
        "fe80::1%eth0",
    ],
)
def test_an_address_of_ones_own_needs_no_consent(address: str) -> None:
    assert public_address("inference.internal", resolving(address)) is None


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8"])
def test_a_public_address_is_found_behind_any_name(address: str) -> None:
    assert public_address("llm.example", resolving("10.0.0.1", address)) is not None


def test_a_name_that_leads_nowhere_is_left_to_the_connection() -> None:
    assert public_address("nowhere.example", resolving()) is None


def test_names_of_this_machine_and_network_are_not_even_resolved() -> None:
    def never(*_: object, **__: object) -> Any:
        raise AssertionError

    assert {public_address(name, never) for name in ("localhost", "a.localhost", "gpu-box.local")} == {None}


def test_a_public_host_is_loaded_only_by_who_says_so() -> None:
    with pytest.raises(
        AccessError, match=r"llm\.example is a public host \(8\.8\.8\.8\).*--allow-public-host"
    ):
        require_consent("llm.example", allowed=False, resolve=resolving("8.8.8.8"))
    require_consent("llm.example", allowed=True, resolve=resolving("8.8.8.8"))


def test_the_cap_names_the_way_to_lift_it() -> None:
    require_below_cap(5_000, 5_000)
    with pytest.raises(AccessError, match=r"5,001 users .* cap of 5,000: .*--users-cap 5001"):
        require_below_cap(5_001, 5_000)
