"""The top-k that config.json states, where it leaves no doubt."""

from __future__ import annotations

from collections.abc import Mapping

from moetool.checkpoint.stated.top_k_fields import NUM_EXPERTS_FIELDS, TOP_K_FIELDS

# Phi-3.5-MoE's sampler always chooses two. DiffusionGemma's stacks share their experts, so one token
# in each does not run a fixed number of them.
_OTHER_TOP_K = {"phimoe": 2, "diffusion_gemma": None}


def find_stated_top_k(
    config: Mapping[str, object],
    text_config: Mapping[str, object],
    num_experts: Mapping[tuple[str, int], int | None],
    *,
    stated_by: str | None,
) -> tuple[int | None, str | None]:
    """Return the top-k that config.json states, or the reason why it leaves doubt.

    There is no doubt if it states one number, states as many experts as the files have, and states
    no experts without weights.

    Args:
        config: The config.json.
        text_config: Its part for the text model.
        num_experts: Routed experts in the files, by routed layer.
        stated_by: The name of the file that the configuration is from; None if there is none.
    """
    if not num_experts:
        return None, None
    if stated_by is None:
        return None, "no file of the checkpoint states how many experts a token runs"
    stated = {text_config[name] for name in TOP_K_FIELDS if _is_count(text_config.get(name))}
    counts = {text_config[name] for name in NUM_EXPERTS_FIELDS if _is_count(text_config.get(name))}
    if len(stated) != 1:
        return None, f"{stated_by} does not state how many experts a token runs"
    if set(num_experts.values()) != counts:
        return None, f"{stated_by} and the names in the files show different numbers of experts"
    if text_config.get("zero_expert_num"):
        return None, "a token may choose experts without weights, and so run fewer than top-k"
    top_k = stated.pop()
    assert isinstance(top_k, int)
    fewest = min(number for number in num_experts.values() if number is not None)
    if top_k > fewest:
        return None, f"{stated_by} states top-{top_k} of {fewest} experts"
    if _OTHER_TOP_K.get(str(config.get("model_type")), top_k) != top_k:
        return None, f"models of this type run another number of experts than {stated_by} states"
    return top_k, None


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0
