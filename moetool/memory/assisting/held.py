"""The weights of an assistant as a GPU holds them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.errors import InputError

if TYPE_CHECKING:
    from moetool.memory.loaded.loaded_model import LoadedModel
    from moetool.memory.simulated.simulated_run import SimulatedRun


def hold_assistant(run: SimulatedRun, model: LoadedModel) -> SimulatedRun:
    """Return a run whose assistant's weights are those that a GPU holds.

    Args:
        run: A run with the assistant as it was simulated.
        model: The assistant as it is loaded.

    Raises:
        InputError: They are unknown.
    """
    assistant = run.assistant
    assert assistant is not None
    held_bytes = model.count_held_bytes(simulated_bytes=assistant.weights_bytes)
    if held_bytes is None:
        raise InputError(
            f"The size of the weights of {assistant.model} on a GPU is unknown.",
            hint="Give --dtype bfloat16, or name another assistant.",
        )
    shifted = run.shift_weights(held_bytes - assistant.weights_bytes)
    return replace(shifted, assistant=replace(assistant, weights_bytes=held_bytes))
