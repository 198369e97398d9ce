"""A process that estimates parts of sweeps, one after another.

It reads tasks from stdin and answers each on stdout, as `process.answering` describes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.catalogue.gpus import Gpu
from moetool.checkpoint.reference import ModelReference
from moetool.errors import MoetoolError
from moetool.memory.fitting.workers import keep_torch_to_one_core
from moetool.memory.machine.gpu_group import GpuGroup
from moetool.memory.scenario import Scenario
from moetool.memory.serving.answer import ServingOptions
from moetool.process.answering import answer_tasks

if TYPE_CHECKING:
    from moetool.memory.result import Estimate


@dataclass(frozen=True)
class SweepOptions:
    """The options that all estimates of a sweep share, as `estimate_memory` takes them."""

    clipped_sizes: tuple[str, ...] | None = None
    gpu: Gpu | None = None
    trace: Path | None = None
    measure: bool = False
    serving: ServingOptions | None = None
    parallel: GpuGroup | None = None
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class SweepTask:
    """Some scenarios of a model.

    Attributes:
        scenarios: All scenarios of the sweep, which are checked before any of them runs.
        first: The position of the first one to estimate.
        end: The position after the last one.
    """

    model: ModelReference
    scenarios: tuple[Scenario, ...]
    first: int
    end: int
    options: SweepOptions


def answer(task: SweepTask) -> list[Estimate] | MoetoolError:
    """Return the estimates of a task, or the error that `estimate_memory` raises."""
    from moetool.memory.estimate import estimate_part

    try:
        return estimate_part(
            task.model, task.scenarios, slice(task.first, task.end), **vars(task.options)
        )
    except MoetoolError as error:
        return error


def main() -> None:
    """Answer every task on stdin with estimates or an error on stdout."""
    answer_tasks(lambda task: answer(task), prepare=keep_torch_to_one_core)


if __name__ == "__main__":
    main()
