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

from estimator.engine_spec import LmdeployBackend
from estimator.spec import SpecError
from estimator.twin.cost_file import read_cost
from estimator.twin.faults import read_faults
from estimator.twin.limits import Policy
from estimator.twin.options import PORTS, EngineName, ServerOptions, read_key
from estimator.twin.profile import TwinProfile, read_profile
from estimator.twin.server import TwinServer, runner_of

EXIT_USAGE: Final = 2
DEFAULT_PROFILE: Final = "tiny"
OVERRIDES: Final = (
    *("num_gpu_blocks", "block_size", "max_num_seqs", "max_model_len", "served_model_name"),
    *("enable_prefix_caching", "scheduling_policy", "watermark"),
)
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
    """A collection holds up every stream: a millisecond for 10,000 young objects, tens for all of them.

    Answers leave no cycles behind. A closed connection leaves seven objects of asyncio tied to each other, a
    kilobyte: so many wait for the collector that nobody need see them in the memory of the process.
    """
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def _until_stdin_ends(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # os.read, not sys.stdin: a daemon thread inside a buffered read would hold its lock at exit.
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def main(
    arguments: Sequence[str] | None = None,
    *,
    program: str | None = None,
    profile: TwinProfile | None = None,
) -> int:
    """Command line; returns the exit code. 2 for a wrong profile or flag, or an address in use.

    profile: of a model and a GPU, in place of the file that --profile names.
    """
    flags = parser_of(program).parse_args(arguments)
    port = PORTS[flags.engine] if flags.port is None else flags.port
    try:
        served = serve(
            profile_of(flags, profile),
            options_of(flags),
            (flags.host, port),
            exit_with_stdin=flags.exit_with_stdin,
        )
        asyncio.run(served)
    except SpecError as error:
        return _refuse(str(error))
    except (OSError, OverflowError) as error:
        return _refuse(f"cannot serve on {flags.host}:{port}: {error}; choose another --port or --host")
    return 0


def profile_of(flags: argparse.Namespace, given: TwinProfile | None = None) -> TwinProfile:
    """The simulated engine: as given or as the file says, with what the flags change."""
    if given is not None and flags.profile is not None:
        raise SpecError("give --profile, or --model and --gpu, not both")
    changes = {name: getattr(flags, name) for name in OVERRIDES if getattr(flags, name) is not None}
    if flags.calibration is not None:
        cost = read_cost(flags.calibration).cost
        changes |= {"step_cost": cost.step, "front_end": cost.front_end}
    return replace(given or read_profile(flags.profile or DEFAULT_PROFILE), **changes)


def options_of(flags: argparse.Namespace) -> ServerOptions:
    """Raises SpecError for a wrong value, file of faults or key."""
    return ServerOptions(
        engine=flags.engine,
        backend=flags.backend,
        stream_interval=flags.stream_interval,
        time_scale=flags.time_scale,
        mean_output_tokens=flags.mean_output_tokens,
        seed=flags.seed,
        reasoning_parser=flags.reasoning_parser,
        tool_call_parser=flags.tool_call_parser,
        enable_auto_tool_choice=flags.enable_auto_tool_choice,
        api_key=read_key(),
        enable_prompt_tokens_details=flags.enable_prompt_tokens_details,
        max_num_queued_reqs=flags.max_num_queued_reqs,
        max_num_queued_tokens=flags.max_num_queued_tokens,
        data_parallel_size=flags.data_parallel_size,
        test_mode=flags.test_mode,
        faults=read_faults(flags.faults) if flags.faults else (),
    )


def parser_of(program: str | None = None) -> argparse.ArgumentParser:
    """The flags; vLLM's own names where vLLM has them."""
    parser = argparse.ArgumentParser(
        prog=program or "python -m estimator.twin.server",
        description="A simulated vLLM or LMDeploy whose latency and saturation emerge from its scheduler.",
        epilog="`ullage twin --model NAME --gpu NAME`, with the flags of `ullage estimate`, serves the twin "
        "of a model in place of --profile. An API key is read from ULLAGE_TWIN_API_KEY or the file named by "
        "ULLAGE_TWIN_API_KEY_FILE.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--profile", help=f"a file of configs/engines (default: {DEFAULT_PROFILE})")
    add(
        "--engine", choices=get_args(EngineName), default="vllm", help="whose API and metrics (default: vllm)"
    )
    add("--backend", choices=get_args(LmdeployBackend), default="turbomind", help="LMDeploy's own engine")
    add("--host", default="127.0.0.1", help="address to bind (default: loopback only)")
    add("--port", type=int, help="0 takes a free one (default: 8000, for lmdeploy 23333)")
    add("--num-gpu-blocks-override", dest="num_gpu_blocks", type=int, metavar="N")
    for name in OVERRIDES[1:4]:
        add("--" + name.replace("_", "-"), type=int, metavar="N")
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    add("--scheduling-policy", choices=get_args(Policy))
    add("--watermark", type=float, metavar="SHARE", help="of the blocks, kept free at admission")
    add("--served-model-name", metavar="NAME")
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="take the time of a step as `ullage calibrate` found it",
    )
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
    add("--enable-prompt-tokens-details", action="store_true", help="usage tells the cached tokens")
    add("--max-num-queued-reqs", type=int, metavar="N", help="unfinished requests; more are answered 503")
    add("--max-num-queued-tokens", type=int, metavar="N", help="prompt tokens waiting; more are answered 503")
    add("--data-parallel-size", type=int, default=1, metavar="N", help="engines, each with its own blocks")
    add("--faults", type=Path, metavar="FILE", help="faults of this server, as YAML")
    add("--test-mode", action="store_true", help="a request's x-ullage-fault header switches a fault on")
    add("--exit-with-stdin", action="store_true", help="stop when stdin is closed")
    return parser


def _refuse(sentence: str) -> int:
    print(f"twin: {sentence}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
