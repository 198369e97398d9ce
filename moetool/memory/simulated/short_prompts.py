"""Long prompts extrapolated from short ones, for layers that process one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from moetool.simulation.memory.allocator.caching_allocator import DeviceFullError
from moetool.simulation.memory.replay.memory_replay import MemoryProfile, PhasePeak
from moetool.simulation.memory.timeline import AllocatedParts

# Long enough that the same operations as in long prompts make the peaks, and short enough to take
# seconds.
SHORT_PROMPTS = (128, 256)


@dataclass(frozen=True)
class ExtrapolatedReplay:
    """A function that replays a run of which only the profile is known.

    Memory that the allocator could give back is unknown: the run completes if everything it asks
    for is available.

    Attributes:
        profile: The profile of the run.
    """

    profile: MemoryProfile

    def __call__(self, capacity_bytes: int | None) -> MemoryProfile:
        """Return the memory that the run takes.

        Args:
            capacity_bytes: Memory of the GPU that torch's allocator may reserve; None for no limit.

        Raises:
            DeviceFullError: The run takes more.
        """
        if capacity_bytes is not None and self.profile.peak_reserved_bytes > capacity_bytes:
            raise DeviceFullError
        return self.profile


def profile_by_short_prompts(
    profile: Callable[[int], MemoryProfile], *, num_prompt_tokens: int, num_new_tokens: int
) -> MemoryProfile:
    """Return the profile of a run, extrapolated from those of two shorter ones.

    The memory of a prompt and of a step is assumed to grow linearly with the number of tokens
    before them. It does while the same operation makes the peak, except for the allocator's
    rounding, and for eager attention, which grows faster.

    Args:
        profile: Returns the profile of a prompt of that many tokens, with at most two new tokens.
        num_prompt_tokens: Length of the prompt.
        num_new_tokens: Tokens generated.
    """
    short = [profile(number) for number in SHORT_PROMPTS]
    last = short[-1]
    prefill = _extrapolate_peak([each.prefill for each in short], num_prompt_tokens)
    last_prefill_bytes = last.weights_bytes + last.prefill.parts.above_weights_bytes
    prefill_spare_bytes = last.prefill_reserved_bytes - last_prefill_bytes
    prefill_bytes = last.weights_bytes + prefill.parts.above_weights_bytes
    prefill_reserved_bytes = prefill_bytes + prefill_spare_bytes
    reserved_bytes = [prefill_reserved_bytes]
    allocated_bytes = [prefill_bytes]
    # The step of a short generation comes right after its prompt.
    num_before_last = num_prompt_tokens + max(num_new_tokens - 2, 0)
    decodes = [each.decode for each in short if each.decode is not None]
    decode = _extrapolate_peak(decodes, num_before_last) if len(decodes) == len(short) else None
    if decode is not None:
        spare_bytes = last.peak_reserved_bytes - last.peak_allocated_bytes
        decode_bytes = last.weights_bytes + decode.parts.above_weights_bytes
        allocated_bytes.append(decode_bytes)
        reserved_bytes.append(decode_bytes + min(spare_bytes, prefill_spare_bytes))
    return replace(
        last,
        cache_bytes=_extrapolate([each.cache_bytes for each in short], num_before_last),
        peak_allocated_bytes=max(allocated_bytes),
        peak_reserved_bytes=max(reserved_bytes),
        prefill=prefill,
        decode=decode,
        prefill_reserved_bytes=prefill_reserved_bytes,
        prompt_cache_bytes=_extrapolate(
            [each.prompt_cache_bytes for each in short], num_prompt_tokens
        ),
    )


def _extrapolate_peak(peaks: Sequence[PhasePeak], num_tokens: int) -> PhasePeak:
    parts = [peak.parts for peak in peaks]
    return PhasePeak(
        AllocatedParts(
            weights_bytes=parts[-1].weights_bytes,
            cache_bytes=_extrapolate([part.cache_bytes for part in parts], num_tokens),
            activation_bytes=_extrapolate([part.activation_bytes for part in parts], num_tokens),
            workspace_bytes=parts[-1].workspace_bytes,
        ),
        peaks[-1].origin,
    )


def _extrapolate(values: Sequence[int], num_tokens: int) -> int:
    """Return the value for a number of tokens from those of `SHORT_PROMPTS`."""
    (first, last), (start, end) = values, SHORT_PROMPTS
    return first + (last - first) * (num_tokens - start) // (end - start)
