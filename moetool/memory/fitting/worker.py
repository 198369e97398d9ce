"""A process that finds out which models of the catalogue run on a GPU, one after another.

It reads tasks from stdin and answers each on stdout, as `process.answering` describes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.catalogue.gpus import Gpu
from moetool.catalogue.published import read_published_models
from moetool.errors import MoetoolError
from moetool.memory.fitting.fact_cache import FactCache
from moetool.memory.fitting.known_facts import ModelSize, RunFacts
from moetool.memory.fitting.model_fit import ModelFit, find_model_fit
from moetool.memory.fitting.workers import keep_torch_to_one_core
from moetool.memory.notes.estimate_notes import note_clipped
from moetool.memory.scenario import Scenario
from moetool.process.answering import answer_tasks

if TYPE_CHECKING:
    from moetool.memory.fitting.simulated_model import SimulatedModel

_TOO_LITTLE_MEMORY = "This machine has too little memory to simulate it."


@dataclass(frozen=True)
class FitTask:
    """A question: does a model run on a GPU?

    Attributes:
        model: The model's short name.
        clipped_sizes: Sizes of the scenario that are reduced to what the model's context allows.
        cache_folder: The folder of facts that are known already; None to find out everything anew.
    """

    model: str
    gpu: Gpu
    scenario: Scenario
    clipped_sizes: tuple[str, ...]
    cache_folder: Path | None

    def clip(self, size: ModelSize) -> Scenario:
        """Return the scenario within the context of a model of that size."""
        if size.most_tokens is None:
            return self.scenario
        return self.scenario.clip(size.most_tokens, sizes=self.clipped_sizes)

    def note_clipped(self, size: ModelSize) -> str | None:
        """Return a note if the scenario is reduced to the context of a model of that size."""
        clipped = self.clip(size)
        if size.most_tokens is None or clipped == self.scenario:
            return None
        return note_clipped(self.scenario, clipped, context=size.most_tokens)


def answer(task: FitTask) -> ModelFit:
    """Return whether a model runs on a GPU. Facts that are found out are kept in the cache."""
    cache = FactCache(task.cache_folder)
    try:
        size = cache.read_size(task.model)
        if size is None:
            size = _count(task)
            cache.write_size(task.model, size)
        return replace(_find_fit(task, cache, size), note=task.note_clipped(size))
    except MoetoolError as error:
        return ModelFit(task.model, reason=error.message)
    except MemoryError:
        return ModelFit(task.model, reason=_TOO_LITTLE_MEMORY)


def _count(task: FitTask) -> ModelSize:
    return _open(task, task.scenario, RunFacts()).count_params()


def _find_fit(task: FitTask, cache: FactCache, size: ModelSize) -> ModelFit:
    scenario = task.clip(size)
    facts = cache.read_facts(task.model, task.gpu, scenario) or RunFacts()
    opened: list[SimulatedModel] = []

    def simulate() -> SimulatedModel:
        if not opened:
            opened.append(_open(task, scenario, facts))
        return opened[0]

    try:
        return find_model_fit(
            task.model, size=size, facts=facts, gpu=task.gpu, scenario=scenario, simulate=simulate
        )
    finally:
        if opened:
            cache.write_facts(task.model, task.gpu, scenario, facts)


def _open(task: FitTask, scenario: Scenario, facts: RunFacts) -> SimulatedModel:
    from moetool.memory.fitting.simulated_model import SimulatedModel

    return SimulatedModel(read_published_models()[task.model], task.gpu, scenario, facts)


def main() -> None:
    """Answer every task on stdin with a `ModelFit` on stdout, or with a `TaskError`."""
    answer_tasks(lambda task: answer(task), prepare=keep_torch_to_one_core)


if __name__ == "__main__":
    main()
