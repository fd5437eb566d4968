"""The flags of every command that reaches a server: whom to believe, where the key is, what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from loadtest.access import (
    API_KEY_NAME_VARIABLE,
    CA_FILE_VARIABLE,
    INSECURE_VARIABLE,
    PUBLIC_HOST_VARIABLE,
    USERS_CAP,
    USERS_CAP_VARIABLE,
    Access,
)
from loadtest.origin import Origin, parse_origin

Command = Callable[..., Any]


def access_flags(command: Command) -> Command:
    """--ca-file, --insecure and --api-key-variable."""
    for option in (
        click.option(
            "--api-key-variable",
            envvar=API_KEY_NAME_VARIABLE,
            metavar="NAME",
            help="Environment variable with the API key.",
        ),
        click.option(
            "--insecure",
            is_flag=True,
            envvar=INSECURE_VARIABLE,
            help="Believe any certificate; nothing is signed off then.",
        ),
        click.option(
            "--ca-file",
            envvar=CA_FILE_VARIABLE,
            type=click.Path(path_type=Path),
            help="PEM file of the CA that signed the server's certificate.",
        ),
    ):
        command = option(command)
    return command


def allow_public_host_flag(command: Command) -> Command:
    """For every command that loads a server."""
    return click.option(
        "--allow-public-host",
        is_flag=True,
        envvar=PUBLIC_HOST_VARIABLE,
        help="The server has a public address, and I may load it.",
    )(command)


def tokenizer_flag(command: Command) -> Command:
    """For commands that count a scenario's tokens."""
    return click.option(
        "--tokenizer",
        envvar="ULLAGE_TOKENIZER",
        metavar="PATH",
        help="A model's folder or tokenizer.json that counts in place of the server; needs the extra: "
        "ullage[tokenizers].",
    )(command)


def users_cap_flag(command: Command) -> Command:
    """For commands with a number of users."""
    return click.option(
        "--users-cap",
        type=click.IntRange(min=1),
        default=USERS_CAP,
        show_default=True,
        envvar=USERS_CAP_VARIABLE,
        help="Refuse more users at once.",
    )(command)


def access_from(options: Mapping[str, Any]) -> Access:
    ca_file = options["ca_file"]
    return Access(
        ca_file=None if ca_file is None else str(Path(ca_file).absolute()),
        insecure=options["insecure"],
        api_key_variable=options["api_key_variable"],
    )


def origin_from(host: str, options: Mapping[str, Any]) -> Origin:
    """Raises OriginError; warns on stderr when nobody will know who answers."""
    origin = parse_origin(host, access_from(options))
    if origin.warning is not None:
        click.echo(origin.warning, err=True)
    return origin
