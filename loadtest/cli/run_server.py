"""The server of a finished run, and the same with some flags changed, as estimate and twin know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from estimator.capacity import predict
from estimator.catalog import read_gpu
from estimator.engine_spec import EngineSpec
from estimator.estimate import Estimate, estimate
from estimator.memory import NO_OVERHEADS, Overheads
from estimator.spec import GpuSpec, Interval, SpecError, Workload
from estimator.twin.cost import ServerCost
from estimator.twin.forecast import mean_tokens
from estimator.twin.from_model import cost_of_estimate, limits_of_estimate
from estimator.twin.profile import TwinProfile, read_profile
from loadtest.cli.answers import overheads_shown, read_named, settings_for, weights_for
from loadtest.named_server import NamedServer
from loadtest.reporter.run_cost import Server
from loadtest.run_folder import Manifest
from loadtest.scenario import parse_scenario

PROFILE_FLAGS: Final = {
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_model_len": "max_model_len",
    "block_size": "block_size",
    "num_gpu_blocks_override": "num_gpu_blocks",
    "enable_prefix_caching": "enable_prefix_caching",
}
"""Flags of a server -> what they are called in the profile of a twin; a profile has no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunServer:
    """A server with its uncalibrated cost. `answer` is None for a twin of a profile."""

    server: Server
    answer: Estimate | None
    profile: TwinProfile | None = None


def server_of_run(manifest: Manifest) -> RunServer:
    """Raises SpecError, one sentence, where the run does not say what its server was."""
    named = manifest.named
    if named is not None and named.twin is not None:
        profile = read_profile(named.twin)
        return _of_profile(named.twin, profile, workload_of(manifest))
    plain = estimate_named_run(manifest)
    shown = overheads_shown(plain, manifest.server)
    if shown is None:
        return of_estimate(plain)
    assert named is not None
    return of_estimate(_again(named, plain.gpu, plain.engine, plain.prediction.workload, shown))


def changed_server(manifest: Manifest, before: RunServer, given: Mapping[str, Any]) -> RunServer:
    """The same with the flags of `given`, by the names of EngineSpec, and `gpu`. Raises SpecError."""
    named = manifest.named
    assert named is not None
    if before.profile is not None:
        return _changed_profile(str(named.twin), before, given)
    assert named.flags is not None
    assert before.answer is not None
    flags = replace(named.flags, **{name: value for name, value in given.items() if name != "gpu"})
    if flags.engine != named.flags.engine:
        raise SpecError(
            f"the run was of {named.flags.engine}, and another engine schedules differently: "
            "sign it off itself, or use ullage predict"
        )
    gpu = read_gpu(given["gpu"]) if "gpu" in given else before.answer.gpu
    workload = before.answer.prediction.workload
    plain = estimate_named(str(named.model), gpu, flags, workload)
    version = manifest.versions.get("server")
    shown = overheads_shown(before.answer, manifest.server)
    if shown is None or settings_for(plain, version) != settings_for(before.answer, version):
        return of_estimate(plain)
    return of_estimate(_again(named, gpu, flags, workload, shown))


def estimate_named_run(manifest: Manifest) -> Estimate:
    """What was named of the run's server, by priors alone. Raises SpecError where nothing was."""
    named = manifest.named
    if named is None or named.model is None or named.gpu is None or named.flags is None:
        raise SpecError(
            f"{manifest.run_id} names no model and GPU, so nothing says what another server would do: "
            "sign off with --model-config and --gpu, and the flags of the server"
        )
    return estimate_named(named.model, read_gpu(named.gpu), named.flags, workload_of(manifest))


def workload_of(manifest: Manifest) -> Workload:
    return parse_scenario(dict(manifest.scenario)).workload


def estimate_named(
    model: str, gpu: GpuSpec, flags: EngineSpec, workload: Workload, overheads: Overheads = NO_OVERHEADS
) -> Estimate:
    """Raises SpecError when the server would not start."""
    spec, folder = read_named(model)
    return estimate(spec, gpu, flags, weights_for(spec, flags, gpu, folder), workload, overheads)


def of_estimate(answer: Estimate) -> RunServer:
    workload = answer.prediction.workload
    context_tokens = mean_tokens(workload.input_tokens) + mean_tokens(workload.output_tokens) / 2
    gpus = answer.engine.tp * answer.engine.pp
    server = Server(
        words=f"{answer.model.name} on {f'{gpus} x ' if gpus > 1 else ''}{answer.gpu.name}",
        prediction=answer.prediction,
        n_guaranteed=answer.n_guaranteed,
        limits=limits_of_estimate(answer),
        cost=cost_of_estimate(answer, round(context_tokens)),
    )
    return RunServer(server=server, answer=answer)


def differences(before: RunServer, after: RunServer) -> tuple[str, ...]:
    """Every flag that differs, "tp 1 -> 2"."""
    if before.profile is not None and after.profile is not None:
        pairs = [asdict(side.profile) for side in (before, after) if side.profile is not None]
    else:
        pairs = [
            {"gpu": side.answer.gpu.name} | asdict(side.answer.engine)
            for side in (before, after)
            if side.answer is not None
        ]
    old, new = pairs
    return tuple(f"{name} {_said(old[name])} -> {_said(new[name])}" for name in old if old[name] != new[name])


def _said(value: Any) -> str:
    return "default" if value is None else str(value)


def _again(
    named: NamedServer, gpu: GpuSpec, flags: EngineSpec, workload: Workload, overheads: Overheads
) -> Estimate:
    return estimate_named(str(named.model), gpu, flags, workload, overheads)


def _of_profile(name: str, profile: TwinProfile, workload: Workload) -> RunServer:
    prediction = predict(
        profile.pool, workload, max_model_len=profile.max_model_len, slots=profile.max_num_seqs
    )
    server = Server(
        words=f"twin {name}",
        prediction=prediction,
        n_guaranteed=Interval.exact(prediction.n_guaranteed),
        limits=profile.limits,
        cost=ServerCost(step=profile.step_cost, source=f"configs/engines/{name}.yaml"),
    )
    return RunServer(server=server, answer=None, profile=profile)


def _changed_profile(name: str, before: RunServer, given: Mapping[str, Any]) -> RunServer:
    assert before.profile is not None
    for flag in given:
        if flag not in PROFILE_FLAGS:
            raise SpecError(
                f"--{flag.replace('_', '-')} needs a model and a GPU, and the run was of the twin {name}: "
                f"change {', '.join('--' + known.replace('_', '-') for known in PROFILE_FLAGS)} only"
            )
    profile = replace(before.profile, **{PROFILE_FLAGS[flag]: value for flag, value in given.items()})
    return _of_profile(name, profile, before.server.prediction.workload)
