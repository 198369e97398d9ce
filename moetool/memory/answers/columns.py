"""Names of the figures that JSON and CSV show, and of their columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moetool.memory.answers.figures import Peak, Phase

if TYPE_CHECKING:
    from moetool.memory.measured.measurement import Measurement

FIGURES = (
    "weights_bytes",
    "cache_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "context_bytes",
    "total_device_bytes",
)
# Their columns are at the end.
LAST_OPTIONS = ("cache_dtype", "num_beams", "num_return_sequences")
OF_TRAINING = ("optimizer", "has_checkpointing", "frozen")
LATEST_OPTIONS = ("assistant", "lora_rank", "lora_targets", "trained_experts")
PEAK_OF_A_PHASE = {
    phase: f"{phase.value}_peak_allocated_bytes" for phase in (Phase.PREFILL, Phase.DECODE)
}
# By the type of their values.
OF_A_PEAK = {
    "phase": str | None,
    "layer": str | None,
    "operation": str | None,
    "weights_bytes": int | None,
    "cache_bytes": int | None,
    "activation_bytes": int | None,
    "workspace_bytes": int | None,
}
OF_A_TRAINING_PEAK = ("gradient_bytes", "optimizer_state_bytes")
AT_PEAK = (*OF_A_PEAK, *OF_A_TRAINING_PEAK)


def describe_peak(peak: Peak) -> dict[str, Any]:
    """Return the fields of a peak by name."""
    return {name: getattr(peak, name) for name in AT_PEAK}


def describe_measurement(measured: Measurement) -> dict[str, Any]:
    """Return the fields of a measurement by name."""
    names = ("gpu", *FIGURES, "seconds", "prefill_s", "decode_s_per_token")
    return {**{name: getattr(measured, name) for name in names}, "bus": measured.bus}
