"""The command line of the twin: flags -> a profile and options, then serving until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

from aiohttp import web

from estimator.spec import SpecError
from estimator.twin.faults import read_faults
from estimator.twin.options import PORTS, EngineName, ServerOptions, read_key
from estimator.twin.profile import TwinProfile, read_profile
from estimator.twin.server import TwinServer, runner_of

EXIT_USAGE: Final = 2
OVERRIDES: Final = ("num_gpu_blocks", "block_size", "max_num_seqs", "max_model_len", "served_model_name")
"""Flags that change a key of the profile."""


async def serve(
    profile: TwinProfile, options: ServerOptions, address: tuple[str, int], *, exit_with_stdin: bool
) -> None:
    """Serves until SIGTERM, SIGINT or, where asked for, the end of stdin. OSError when it cannot bind."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    runner = runner_of(TwinServer(profile, options))
    await runner.setup()
    try:
        host, port = address
        await web.TCPSite(runner, host, port, backlog=1024).start()
        bound = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        print(f"twin ready on http://{shown}:{bound} model={profile.served_model_name}", flush=True)
        if exit_with_stdin:
            threading.Thread(target=_until_stdin_ends, args=(loop, stop), daemon=True).start()
        _spare_the_collector()
        await stop.wait()
    finally:
        await runner.cleanup()


def _spare_the_collector() -> None:
    """A full collection over all open streams takes milliseconds, which every client would see."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _until_stdin_ends(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # os.read, not sys.stdin: a daemon thread inside a buffered read would hold its lock at exit.
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Command line; returns the exit code. 2 for a wrong profile or flag, or an address in use."""
    flags = parser_of(program).parse_args(arguments)
    port = PORTS[flags.engine] if flags.port is None else flags.port
    try:
        served = serve(
            profile_of(flags), options_of(flags), (flags.host, port), exit_with_stdin=flags.exit_with_stdin
        )
        asyncio.run(served)
    except SpecError as error:
        return _refuse(str(error))
    except (OSError, OverflowError) as error:
        return _refuse(f"cannot serve on {flags.host}:{port}: {error}; choose another --port or --host")
    return 0


def profile_of(flags: argparse.Namespace) -> TwinProfile:
    """The simulated engine. The one place to build it from a model and a GPU instead of a file."""
    changes = {name: getattr(flags, name) for name in OVERRIDES if getattr(flags, name) is not None}
    return replace(read_profile(flags.profile), **changes)


def options_of(flags: argparse.Namespace) -> ServerOptions:
    """Raises SpecError for a wrong value, file of faults or key."""
    return ServerOptions(
        engine=flags.engine,
        stream_interval=flags.stream_interval,
        time_scale=flags.time_scale,
        mean_output_tokens=flags.mean_output_tokens,
        seed=flags.seed,
        reasoning_parser=flags.reasoning_parser,
        tool_call_parser=flags.tool_call_parser,
        enable_auto_tool_choice=flags.enable_auto_tool_choice,
        api_key=read_key(),
        test_mode=flags.test_mode,
        faults=read_faults(flags.faults) if flags.faults else (),
    )


def parser_of(program: str | None = None) -> argparse.ArgumentParser:
    """The flags; vLLM's own names where vLLM has them."""
    parser = argparse.ArgumentParser(
        prog=program or "python -m estimator.twin.server",
        description="A simulated vLLM or LMDeploy whose latency and saturation emerge from its scheduler.",
        epilog="An API key is read from ULLAGE_TWIN_API_KEY or the file named by ULLAGE_TWIN_API_KEY_FILE.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--profile", default="tiny", help="a file of configs/engines (default: tiny)")
    add(
        "--engine", choices=get_args(EngineName), default="vllm", help="whose API and metrics (default: vllm)"
    )
    add("--host", default="127.0.0.1", help="address to bind (default: loopback only)")
    add("--port", type=int, help="0 takes a free one (default: 8000, for lmdeploy 23333)")
    add("--num-gpu-blocks-override", dest="num_gpu_blocks", type=int, metavar="N")
    for name in OVERRIDES[1:-1]:
        add("--" + name.replace("_", "-"), type=int, metavar="N")
    add("--served-model-name", metavar="NAME")
    add("--time-scale", type=float, default=1.0, metavar="X", help="wall seconds per modelled second")
    add("--stream-interval", type=int, default=1, metavar="N", help="tokens of a streamed chunk")
    add(
        "--mean-output-tokens",
        type=float,
        metavar="N",
        help="where the model stops by itself (default: never)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the drawn lengths (default: 0)")
    add("--reasoning-parser", metavar="NAME", help="any name: the model thinks, in a field of its own")
    add("--tool-call-parser", metavar="NAME", help="any name: a tool asked for is called")
    add("--enable-auto-tool-choice", action="store_true")
    add("--faults", type=Path, metavar="FILE", help="faults of this server, as YAML")
    add("--test-mode", action="store_true", help="a request's x-ullage-fault header switches a fault on")
    add("--exit-with-stdin", action="store_true", help="stop when stdin is closed")
    return parser


def _refuse(sentence: str) -> int:
    print(f"twin: {sentence}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
