"""The memory of a step of training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingMemory:
    """The memory that a step of training holds once the optimizer has states, in bytes.

    Attributes:
        num_trained_parameters: Parameters that are trained.
        num_frozen_parameters: Parameters that are not.
        gradient_bytes: Gradients after the backward pass.
        optimizer_state_bytes: The optimizer's states.
        saved_activation_bytes: What the backward pass needs, at the end of the forward pass.
        forward_peak_bytes: The most that is allocated in the forward pass.
        backward_peak_bytes: The most that is allocated in the backward pass.
        optimizer_peak_bytes: The most that is allocated in the optimizer's step.
    """

    num_trained_parameters: int
    num_frozen_parameters: int
    gradient_bytes: int
    optimizer_state_bytes: int
    saved_activation_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    optimizer_peak_bytes: int
