"""The phase, layer and batch in which memory ran out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.checkpoint.config import first_line
from moetool.errors import OutOfMemoryError
from moetool.tracing.out_of_memory import is_out_of_memory
from moetool.tracing.recording.recorder import RoutingRecorder
from moetool.tracing.running.batches import Batch
from moetool.tracing.running.devices import find_input_device
from moetool.wording import number_of


@contextmanager
def explaining_memory(recorder: RoutingRecorder, batch: Batch) -> Iterator[None]:
    """Name phase, layer and batch if memory runs out while a batch goes through a model.

    Raises:
        OutOfMemoryError: The batch doesn't fit.
    """
    num_before, _ = recorder.reached
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        num_begun, layer = recorder.reached
        # The first call of each stack reads the prompts.
        is_prefill = num_begun - num_before <= len(recorder.recorded.scopes)
        num_rows, num_slots = batch.input_ids.shape
        raise OutOfMemoryError(
            f"Out of memory in {'prefill' if is_prefill else 'decode'}, "
            f"{_name_place(recorder, layer)}, in a batch of {number_of(num_rows, 'prompt')} of up "
            f"to {number_of(num_slots, 'token')} on {find_input_device(recorder.model)}.",
            hint="Start over with a smaller --batch-size or --max-batch-tokens, or free memory and "
            "go on with --resume.",
            facts=[f"seen: {first_line(error)}"],
        ) from error


def _name_place(recorder: RoutingRecorder, layer: MoeLayer | None) -> str:
    if layer is None:
        return "before the first routed layer"
    stack = f"{layer.stack} " if len(recorder.recorded.scopes) > 1 else ""
    return f"in or after {stack}layer {layer.layer}"
