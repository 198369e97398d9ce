"""Show the memory of a step of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.report.text.lines import Paragraph, make_fact
from moetool.report.text.words import word_size

if TYPE_CHECKING:
    from moetool.memory.training.training_memory import TrainingMemory


def list_training(training: TrainingMemory) -> Iterator[Paragraph]:
    """Yield what a step holds, and the peak of each phase."""
    yield make_fact(
        "trained",
        f"{training.num_trained_parameters:,} parameters, {training.num_frozen_parameters:,} frozen",
    )
    for label, num_bytes in (
        ("gradients", training.gradient_bytes),
        ("states", training.optimizer_state_bytes),
        ("saved", training.saved_activation_bytes),
    ):
        yield make_fact(label, word_size(num_bytes))
