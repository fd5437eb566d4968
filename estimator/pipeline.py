"""How pipeline parallelism cuts a model's layers into stages."""

from __future__ import annotations

from estimator.spec import SpecError


def pipeline_stages(layers: int, pp: int) -> tuple[range, ...]:
    """Indices of the layers of each stage, in order; what does not divide goes to the stages before the last.

    Source: vLLM 0.32 distributed/utils.py get_pp_indices. Raises SpecError when a stage would be empty.
    """
    if not 1 <= pp <= layers:
        raise SpecError(f"--pipeline-parallel-size {pp} is not from 1 to the model's {layers} layers")
    least, left = divmod(layers, pp)
    sizes = [least] * pp
    for stage in range(2, left + 2):
        # The last stage already holds the output head, so it is the last to take one more.
        sizes[-stage] += 1
    starts = [sum(sizes[:stage]) for stage in range(pp)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))
