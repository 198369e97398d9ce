"""Eager attention's scores, a matrix that grows with the square of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.anatomy.config_fields import find_num_heads
from moetool.memory.answers.figures import Peak, Phase
from moetool.memory.scenario import Scenario

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MIB = 2**20
# The part of the activations at the peak below which something else must be its cause.
_LEAST_SHARE = 0.1


def note_scores(skeleton: PreTrainedModel, scenario: Scenario, peak: Peak | None) -> str | None:
    """Return a note if eager attention's scores make the peak; otherwise None.

    Args:
        skeleton: The model that ran.
        scenario: The scenario that was run.
        peak: The moment at which the most memory is allocated.
    """
    config = skeleton.config.get_text_config()
    if peak is None or peak.phase is not Phase.PREFILL:
        return None
    if getattr(config, "_attn_implementation", None) != "eager":
        return None
    _, _, module = peak.operation.partition(" in ")
    num_heads = find_num_heads(config)
    if "att" not in module.lower() or num_heads is None:
        return None
    num_tokens = scenario.num_prompt_tokens
    num_bytes = scenario.batch_size * num_heads * num_tokens**2 * skeleton.dtype.itemsize
    if num_bytes < _LEAST_SHARE * peak.parts.activation_bytes:
        return None
    remedy = " --attention sdpa keeps none of them." if skeleton._supports_sdpa else ""
    return (
        f"Eager attention makes the peak: each of its {num_heads} heads scores {num_tokens:,} × "
        f"{num_tokens:,} pairs of tokens, {num_bytes / _MIB:,.0f} MiB in each copy, which grows with "
        f"the square of the prompt.{remedy}"
    )
