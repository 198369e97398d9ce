"""Run steps of training on a skeleton, and record their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.layer_events import Workspace
from moetool.simulation.memory.ordinary_tokens import find_ordinary_token
from moetool.simulation.memory.timeline import Origins
from moetool.simulation.meta.encoders import encoding_inside_model
from moetool.simulation.meta.generation import without_data
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.set_order import going_through_sets_in_order
from moetool.simulation.training.backward_kernels import find_training_temporaries
from moetool.simulation.training.optimizer_kinds import Optimizer
from moetool.simulation.training.optimizers import make_optimizer
from moetool.simulation.training.reused_gradients import ReusedGradients
from moetool.simulation.training.steps import (
    StepEvents,
    TrainingTimeline,
    can_repeat,
    repeat_last_step,
)
from moetool.simulation.training.trained_attention import attention_as_on_gpu

# By the second the optimizer's states exist; the third shows what the allocator reserves then.
NUM_STEPS = 3


@dataclass(frozen=True)
class TrainingOptions:
    """Options of simulated steps of training.

    Attributes:
        batch_size: Number of sequences.
        num_tokens: Tokens of each sequence.
        optimizer: The kind of optimizer, with its defaults.
        has_checkpointing: Whether layers run again in the backward pass instead of keeping their
            activations.
        has_padding: Whether the first sequence begins with a pad.
        is_routing_balanced: Assume that routers choose experts in turns, where the model's code
            reads their choices.
        workspace_bytes: Memory that the first matrix product takes for good.
        lt_workspace_bytes: Memory that the first product with a bias takes for good.
    """

    batch_size: int
    num_tokens: int
    optimizer: Optimizer = Optimizer.ADAMW
    has_checkpointing: bool = False
    has_padding: bool = False
    is_routing_balanced: bool = False
    workspace_bytes: int = 0
    lt_workspace_bytes: int = 0


def run_training(
    skeleton: PreTrainedModel,
    options: TrainingOptions,
    *,
    on_step: Callable[[str], None] | None = None,
) -> TrainingTimeline:
    """Return the timeline of some steps of training; the skeleton is left as it was.

    A step is the model's own loss of its inputs as labels without a cache, its backward pass, the
    optimizer's step, and `zero_grad`. Parameters are trained if they require gradients.

    Args:
        skeleton: The model on the meta device.
        options: Options of the steps.
        on_step: Receives a few words on each step.

    Raises:
        CantSimulate: The model's code needs data, or inputs other than token ids.
    """
    token_id = find_ordinary_token(skeleton.config)
    origins = Origins()
    recorder = AllocationRecorder(
        skeleton,
        origins=origins,
        workspace_bytes=options.workspace_bytes,
        lt_workspace_bytes=options.lt_workspace_bytes,
        find_temporaries=find_training_temporaries,
    )
    known = KnownValues(token_id=token_id, is_routing_balanced=options.is_routing_balanced)
    trained = [each for each in skeleton.parameters() if each.requires_grad]
    steps: list[StepEvents] = []
    gradients: set[int] = set()
    # On a GPU autograd runs in another thread, which has another handle of cuBLAS.
    of_backward: dict[Workspace, int] = {}
    with ExitStack() as stack:
        _prepare(skeleton, stack, has_checkpointing=options.has_checkpointing)
        optimizer = make_optimizer(options.optimizer, trained)
        stack.callback(optimizer.zero_grad)
        stack.enter_context(attention_as_on_gpu())
        reused = stack.enter_context(ReusedGradients())
        stack.enter_context(known)
        stack.enter_context(going_through_sets_in_order(skeleton))
        stack.enter_context(recorder)
        stack.enter_context(encoding_inside_model(skeleton, known))
        with known.inside_model():
            reused.calibrate()
        inputs = _make_inputs(options, known, token_id)
        timeline: TrainingTimeline | None = None
        while timeline is None or not (len(steps) == NUM_STEPS or can_repeat(timeline)):
            if on_step is not None:
                on_step(f"step {len(steps) + 1}")
            start = len(recorder.events)
            with without_data():
                with known.inside_model():
                    loss = skeleton(**inputs).loss
                forward_end = len(recorder.events)
                of_forward = recorder.switch_handle(of_backward)
                with known.inside_model():
                    loss.backward()
                of_backward = recorder.switch_handle(of_forward)
            backward_end = len(recorder.events)
            gradients |= _find_blocks(recorder, (parameter.grad for parameter in trained))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del loss
            steps.append(StepEvents(start, forward_end, backward_end, len(recorder.events)))
            states = (each for state in optimizer.state.values() for each in state.values())
            timeline = TrainingTimeline(
                events=tuple(recorder.events),
                origins=origins.found,
                steps=tuple(steps),
                gradient_blocks=frozenset(gradients),
                state_blocks=frozenset(_find_blocks(recorder, states)),
                workspace_blocks=frozenset((*of_forward.values(), *of_backward.values())),
            )
    return repeat_last_step(timeline, times=NUM_STEPS - len(steps))


def _prepare(skeleton: PreTrainedModel, stack: ExitStack, *, has_checkpointing: bool) -> None:
    """Put a skeleton into training mode until the stack is closed."""
    for module in skeleton.modules():
        if not module.training:
            module.training = True
            stack.callback(setattr, module, "training", False)
    if has_checkpointing:
        # transformers 5.24 calls it by another name, and warns of the old one.
        is_new = hasattr(skeleton, "activation_checkpointing_enable")
        name = "activation" if is_new else "gradient"
        getattr(skeleton, f"{name}_checkpointing_enable")()
        stack.callback(getattr(skeleton, f"{name}_checkpointing_disable"))


def _make_inputs(options: TrainingOptions, known: KnownValues, token_id: int) -> dict[str, Any]:
    shape = (options.batch_size, options.num_tokens)
    ids = torch.zeros(shape, dtype=torch.long, device="meta")
    known.know_filled(ids, token_id)
    inputs: dict[str, Any] = {"input_ids": ids, "labels": ids, "use_cache": False}
    if options.has_padding:
        mask = torch.ones(shape, dtype=torch.long, device="meta")
        values = torch.ones(shape, dtype=torch.long)
        values[0, 0] = 0
        known.know(mask, values)
        inputs["attention_mask"] = mask
    return inputs


def _find_blocks(recorder: AllocationRecorder, tensors: Iterable[Any]) -> set[int]:
    found = (recorder.find_block(each) for each in tensors if isinstance(each, torch.Tensor))
    return {block for block in found if block is not None}
