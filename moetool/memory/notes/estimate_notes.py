"""Notes on estimates and measurements: what they leave out, and how far to trust them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moetool.catalogue.gpus import Gpu
from moetool.memory.answers.figures import StoredWeights
from moetool.memory.answers.on_gpus import Fit
from moetool.memory.measured.measurement import Measurement
from moetool.memory.scenario import Scenario
from moetool.quantizing.kinds import Quantization
from moetool.wording import format_bytes

ONLY_IN_ALL = (
    "Sharing, offloading and speed are left out: the packed size of each parameter is unknown, only "
    "the size of all of them together is known."
)
WEIGHTS_UNKNOWN = (
    "Limits, sharing, offloading and speed are left out: they need the bytes of the weights."
)
TRACE_UNREAD = "The trace was not read: it is only used to bound the speed, which is left out."
RESERVE_GIVEN_BACK = (
    "It fits because torch's allocator gives back what it holds in reserve where the GPU has no room "
    "left, which takes time: on a GPU with more memory it would reserve more."
)
OTHER_GPUS = (
    "The CUDA context's size and the memory that kernels use internally are those of an H200 with "
    "torch 2.11: on other GPUs they may differ by a few hundred MiB."
)
TIGHT = "Tight fit: the driver reserves a few hundred MiB of GPU memory."
TRAINING_UNCONFIRMED = (
    "Steps of training in bfloat16 were measured on an H200 for ten kinds of models, whose peaks "
    "allocated are within 0.05 % of the estimates, but not of this kind with these options."
)


def note_clipped(asked: Scenario, clipped: Scenario, *, context: int) -> str:
    """Return a note that sizes which nobody named were reduced to a model's context."""
    words = {"num_prompt_tokens": "prompt tokens", "num_new_tokens": "new tokens"}
    changes = [
        f"{getattr(clipped, name):,} instead of {getattr(asked, name):,} {label}"
        for name, label in words.items()
        if getattr(clipped, name) != getattr(asked, name)
    ]
    return f"The context is {context:,} tokens: the run has {' and '.join(changes)}."


def note_loading(weights_bytes: int, *, plain_layer_bytes: int) -> str:
    """Return a note on the peak while moetool's loader packs experts.

    Args:
        weights_bytes: The weights once they are loaded.
        plain_layer_bytes: One layer's experts before they are packed.
    """
    return (
        f"While it loads, it takes up to {format_bytes(weights_bytes + plain_layer_bytes)}: files "
        f"that hold the experts of a layer in one tensor bring {format_bytes(plain_layer_bytes)} to "
        "the GPU before they are packed, others single experts."
    )


def note_fits_nowhere(
    smallest_fits: Mapping[Quantization, Fit | None], *, largest: Gpu
) -> Iterator[str]:
    """Yield that a run fits on none of the known GPUs alone, under some quantizations or any.

    Args:
        smallest_fits: The smallest GPU that it fits on, by quantization; None for none.
        largest: The known GPU with the most memory.
    """
    without = [
        "unquantized" if quantization is Quantization.NONE else f"in {quantization}"
        for quantization, fit in smallest_fits.items()
        if fit is None
    ]
    if without:
        storages = f" {' or '.join(without)}" if len(smallest_fits) > 1 else ""
        yield (
            f"No known GPU is enough alone{storages}: the largest, {largest.id}, has "
            f"{format_bytes(largest.memory_bytes)}."
        )


def note_unconfirmed(
    model_type: str, quantization: Quantization, stored: StoredWeights | None
) -> str:
    """Return a note that no GPU has confirmed estimates of a kind of model.

    Args:
        model_type: The architecture's name in transformers.
        quantization: The format in which bitsandbytes stores the weights.
        stored: The stored weights, if the model runs with them.
    """
    kind = f"models of the type {model_type}"
    if stored is not None:
        kind += f" in {stored.method_name}"
    elif quantization is not Quantization.NONE:
        kind += f" in {quantization}"
    return (
        f"No GPU has confirmed estimates of {kind} yet: it may do something that none of the measured "
        "models do."
    )


def list_measurement_notes(measured: Measurement, quantization: Quantization) -> list[str]:
    """Return notes on how a scenario was measured."""
    weights = "random weights" if quantization is Quantization.NONE else "the checkpoint's weights"
    notes = [f"Measured on {measured.gpu} with {weights} in {measured.seconds:.1f} s."]
    if measured.held_before_bytes is None:
        notes.append(
            "The memory that other processes hold on the GPU is unknown: it is included in the "
            "measured total."
        )
    elif measured.held_before_bytes:
        notes.append(
            f"The GPU held {measured.held_before_bytes / 2**20:,.0f} MiB before it was measured, which "
            "the measured total leaves out."
        )
    return notes
