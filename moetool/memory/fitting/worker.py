"""A process that finds out which models of the catalogue run on a GPU, one after another.

It reads tasks from stdin and answers each on stdout, both pickled: its parent is the only one that
writes to it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.catalogue.gpus import Gpu
from moetool.catalogue.published import read_published_models
from moetool.errors import MoetoolError
from moetool.memory.fitting.fact_cache import FactCache
from moetool.memory.fitting.known_facts import RunFacts
from moetool.memory.fitting.model_fit import ModelFit, find_model_fit
from moetool.memory.scenario import Scenario

if TYPE_CHECKING:
    from moetool.memory.fitting.simulated_model import SimulatedModel


@dataclass(frozen=True)
class FitTask:
    """A question: does a model run on a GPU?

    Attributes:
        model: The model's short name.
        cache_folder: The folder of facts that are known already; None to find out everything anew.
    """

    model: str
    gpu: Gpu
    scenario: Scenario
    cache_folder: Path | None


def answer(task: FitTask) -> ModelFit:
    """Return whether a model runs on a GPU. Facts that are found out are kept in the cache."""
    cache = FactCache(task.cache_folder)
    facts = cache.read_facts(task.model, task.gpu, task.scenario) or RunFacts()
    size = cache.read_size(task.model)
    opened: list[SimulatedModel] = []

    def simulate() -> SimulatedModel:
        if not opened:
            from moetool.memory.fitting.simulated_model import SimulatedModel

            model = read_published_models()[task.model]
            opened.append(SimulatedModel(model, task.gpu, task.scenario, facts))
        return opened[0]

    try:
        if size is None:
            size = simulate().count_params()
            cache.write_size(task.model, size)
        return find_model_fit(
            task.model,
            size=size,
            facts=facts,
            gpu=task.gpu,
            scenario=task.scenario,
            simulate=simulate,
        )
    except MoetoolError as error:
        return ModelFit(task.model, reason=error.message)
    finally:
        if opened:
            cache.write_facts(task.model, task.gpu, task.scenario, facts)


def main() -> None:
    """Answer every task on stdin with a `ModelFit` on stdout."""
    # A Ctrl-C is for the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    # Libraries may print.
    os.dup2(2, 1)
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(task), answers)
        answers.flush()


if __name__ == "__main__":
    main()
