"""Simulate the steps of training that a scenario describes."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel

from moetool.memory.answers.figures import Method
from moetool.memory.scenario import Scenario
from moetool.memory.simulated.simulated_run import SimulatedRun, make_figures, make_peaks
from moetool.memory.simulated.trained_parts import trained_as
from moetool.memory.training.training_memory import TrainingMemory
from moetool.simulation.memory.replay.memory_replay import MemoryProfile, PhasePeak
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
from moetool.simulation.memory.timeline import AllocatedParts
from moetool.simulation.meta.generation import CantSimulate
from moetool.simulation.training.optimizer_kinds import Optimizer
from moetool.simulation.training.steps import TrainingTimeline
from moetool.simulation.training.training_replay import (
    TrainingMoment,
    TrainingProfile,
    replay_training,
)
from moetool.simulation.training.training_run import TrainingOptions, run_training

_BALANCED = (
    "It can't run without data ({reason}), so it was simulated as if routers sent every expert the "
    "same number of tokens."
)


def simulate_training(
    skeleton: PreTrainedModel,
    scenario: Scenario,
    *,
    workspace_bytes: int,
    lt_workspace_bytes: int,
    context_bytes: int,
    on_step: Callable[[str], None] | None = None,
) -> SimulatedRun:
    """Return simulated steps of training, with the figures of the last one.

    Raises:
        CantSimulate: The model's code needs data other than the router's choices.
        InputError: The file of chosen experts can't be used with the model.
        UsageError: The model lacks the part to freeze or the layers to adapt.
    """
    optimizer = scenario.optimizer or Optimizer.ADAMW
    notes: list[str] = []
    needs_data: str | None = None

    def run(*, is_balanced: bool) -> TrainingTimeline:
        return run_training(
            skeleton,
            TrainingOptions(
                batch_size=scenario.batch_size,
                num_tokens=scenario.num_prompt_tokens,
                optimizer=optimizer,
                has_checkpointing=scenario.has_checkpointing,
                has_padding=scenario.has_padding,
                is_routing_balanced=is_balanced,
                workspace_bytes=workspace_bytes,
                lt_workspace_bytes=lt_workspace_bytes,
            ),
            on_step=on_step,
        )

    with trained_as(skeleton, scenario) as notes_on_parts:
        notes += notes_on_parts
        weight_bytes = list_weight_bytes(skeleton)
        num_parameters = sum(each.numel() for each in skeleton.parameters())
        trained = [each.numel() for each in skeleton.parameters() if each.requires_grad]
        try:
            timeline = run(is_balanced=False)
        except CantSimulate as error:
            needs_data = error.reason
            notes.append(_BALANCED.format(reason=needs_data))
            timeline = run(is_balanced=True)

    def replay(capacity_bytes: int | None) -> MemoryProfile:
        found = replay_training(timeline, weight_bytes=weight_bytes, capacity_bytes=capacity_bytes)
        return _make_profile(found)

    profile = replay_training(timeline, weight_bytes=weight_bytes)
    shown = _make_profile(profile)
    peaks = [moment.allocated_bytes for moment, _ in profile.peaks.values()]
    return SimulatedRun(
        make_figures(shown, context_bytes=context_bytes),
        make_peaks(shown),
        Method.APPROXIMATE if needs_data else Method.SIMULATED,
        tuple(notes),
        needs_data=needs_data,
        # About 0.1 ms for each event of one step. A trial is one run, not two passes.
        work=timeline.steps[0].end // 2,
        replay=replay,
        training=TrainingMemory(
            num_trained_parameters=sum(trained),
            num_frozen_parameters=num_parameters - sum(trained),
            gradient_bytes=profile.after_backward.gradient_bytes,
            optimizer_state_bytes=profile.after_backward.state_bytes,
            saved_activation_bytes=profile.after_forward.activation_bytes,
            forward_peak_bytes=peaks[0],
            backward_peak_bytes=peaks[1],
            optimizer_peak_bytes=peaks[2],
        ),
    )


def _make_profile(found: TrainingProfile) -> MemoryProfile:
    phases = {
        phase.value: PhasePeak(_make_parts(moment), origin)
        for phase, (moment, origin) in found.peaks.items()
    }
    return MemoryProfile(
        weights_bytes=found.after_forward.weights_bytes,
        cache_bytes=0,
        peak_allocated_bytes=found.peak_allocated_bytes,
        peak_reserved_bytes=found.peak_reserved_bytes,
        prefill=phases["forward"],
        decode=None,
        prefill_reserved_bytes=found.peak_reserved_bytes,
        prompt_cache_bytes=0,
        training_phases=phases,
    )


def _make_parts(moment: TrainingMoment) -> AllocatedParts:
    return AllocatedParts(
        weights_bytes=moment.weights_bytes,
        cache_bytes=0,
        activation_bytes=moment.activation_bytes,
        workspace_bytes=moment.workspace_bytes,
        gradient_bytes=moment.gradient_bytes,
        optimizer_state_bytes=moment.state_bytes,
    )
