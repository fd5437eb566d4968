"""A measured step cost as a person reads it: the steps that were seen, beside what the fit says of them."""

from __future__ import annotations

from collections.abc import Sequence

from estimator.twin.cost import ServerCost
from estimator.twin.fit import StepSeen, predicted_s

MS = 1e3
US = 1e6


def cost_lines(cost: ServerCost, steps: Sequence[StepSeen]) -> list[str]:
    """At most 80 columns."""
    step, front = cost.step, cost.front_end
    lines = ["prompt tokens  decoding  context tokens  step seen  step fitted     off"]
    for seen in sorted(steps, key=lambda seen: (seen.decoding, seen.prefill_tokens, seen.context_tokens)):
        fitted_s = predicted_s(step, seen)
        lines.append(
            f"{seen.prefill_tokens:>13,}  {seen.decoding:>8}  {seen.context_tokens:>14,}  "
            f"{seen.seconds * MS:>6.2f} ms  {fitted_s * MS:>8.2f} ms  {fitted_s / seen.seconds - 1:>+6.1%}"
        )
    return [
        *lines,
        "",
        f"a step            {step.fixed_s * MS:.2f} ms",
        f"  reading weights {step.weights_s * MS:.2f} ms, "
        f"context {step.context_s_per_token * US:.3f} us a token",
        f"  or computing    {step.compute_s_per_token * US:.2f} us a token, "
        f"{step.attention_s_per_pair * US * 1000:.3f} ns a pair of tokens in prompts",
        f"  and, decoding   {step.sequence_s * US:.0f} us a sequence",
        f"the API server    {front.request_s * MS:.1f} ms a request, "
        f"{front.request_cpu_s * MS:.1f} ms of it busy; "
        f"{front.step_s * US:.0f} us a step, {front.chunk_s * US:.0f} us a chunk",
        f"a step takes      {cost.low_factor:.2f} to {cost.high_factor:.2f} times this",
    ]
