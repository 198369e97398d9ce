"""The models of the catalogue that run on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from moetool.catalogue.gpus import Gpu
from moetool.catalogue.published import PublishedModel, read_published_models
from moetool.catalogue.selection import find_total
from moetool.choices import choose, choose_word, take_sizes, take_text
from moetool.errors import InputError, ResumableInterrupt, UsageError
from moetool.memory.fitting.fact_cache import FactCache, find_cache_folder
from moetool.memory.fitting.known_facts import RunFacts
from moetool.memory.fitting.model_fit import (
    FitSort,
    ModelFit,
    Simulation,
    find_model_fit,
    sort_fits,
)
from moetool.memory.fitting.worker import FitTask
from moetool.memory.fitting.workers import choose_num_processes, work_in_processes
from moetool.memory.machine.local_gpu import take_gpu
from moetool.memory.scenario import SIZES_IN_CONTEXT, Scenario
from moetool.plain import Tabular, make_plain

WORKER = (sys.executable, "-m", "moetool.memory.fitting.worker")
# In 4 bits.
_FEWEST_BYTES_PER_PARAM = 0.5
_KEPT = "Interrupted: what was found is kept, and the same call goes on from there."
_HINT = "Run the same command again to go on from what was found."
_KILLED = "The process that simulated it was killed: there may be too little memory."

# Receives the number of models that are done, the number of all, and one of those that are done.
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, repr=False)
class CatalogueFits(Tabular):
    """The models of the catalogue and a GPU.

    Attributes:
        gpu: The GPU, or an amount of memory.
        scenario: The run that each model is asked for.
        models: Those that run, then those that don't, then the unknown; each sorted as asked.
    """

    gpu: Gpu
    scenario: Scenario
    models: tuple[ModelFit, ...]

    @property
    def fitting(self) -> tuple[ModelFit, ...]:
        """The models that run."""
        return tuple(model for model in self.models if model.fits)

    @property
    def too_large(self) -> tuple[ModelFit, ...]:
        """The models that don't run, the one that lacks least first."""
        return tuple(
            sorted(
                (model for model in self.models if model.fits is False),
                key=lambda model: model.shortage_bytes or 0,
            )
        )

    @property
    def unknown(self) -> tuple[ModelFit, ...]:
        """The models of which it is unknown."""
        return tuple(model for model in self.models if model.fits is None)

    def __repr__(self) -> str:
        words = f"{len(self.fitting):,} fitting, {len(self.too_large):,} too large"
        if self.unknown:
            words += f", {len(self.unknown):,} unknown"
        return f"<CatalogueFits {self.gpu.id}: {words}>"

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return {"model": str, "gpu": str, **get_type_hints(ModelFit)}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row for each model. Values are plain; unknown ones are None."""
        return [
            {"model": model.model, "gpu": self.gpu.id, **make_plain(model)} for model in self.models
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        return {
            "gpu": self.gpu.id,
            "memory_bytes": self.gpu.memory_bytes,
            "scenario": make_plain(self.scenario),
            "num_fitting": len(self.fitting),
            "models": self.to_rows(),
        }


class _MissingFactError(Exception):
    """A fact is not in the cache."""


def find_fitting_models(
    gpu: str,
    scenario: Scenario | None = None,
    *,
    models: Sequence[str] | None = None,
    clipped_sizes: Collection[str] | None = None,
    sort: FitSort | str = FitSort.TOTAL,
    use_cache: bool = True,
    on_progress: OnProgress | None = None,
) -> CatalogueFits:
    """Return which models of the catalogue run on a GPU, each with its longest prompt there.

    Each figure is the one that `estimate_memory` gives. Models are simulated in several processes,
    and what they find out is kept in the user's cache folder, or in the one that the environment
    variable MOETOOL_CACHE names. Much of it holds for other GPUs too, so they are answered faster.

    Args:
        gpu: A GPU's id or alias, an amount of memory such as `24GiB`, or `here` for this machine's
            GPU.
        scenario: The run; by default `Scenario()`.
        models: Names in the catalogue, each of which counts once; None for all of them.
        clipped_sizes: Sizes, `num_prompt_tokens` or `num_new_tokens`, to reduce to what a model's
            context allows, with a note. Models are unknown if other sizes are past their context.
            None for both if there is no scenario, else for neither.
        sort: The order of the models.
        use_cache: Whether to use facts that were kept, and to keep new ones.
        on_progress: Receives the number of models that are done, the number of all, and the name of
            one that is done.

    Raises:
        InputError: The catalogue has no such model.
        UsageError: The GPU is unknown, an option can't be used, or no models are named.
        WorkerError: A process failed, for a reason other than a lack of memory.
    """
    found_gpu = take_gpu(take_text(gpu, name="GPU"))
    if found_gpu.is_tpu:
        raise UsageError(
            f"What fits on a {found_gpu.title} is unknown: estimates are those of runs on CUDA.",
            hint=f"`moetool memory-estimate MODEL --gpu {found_gpu.id}` shows what is known.",
        )
    sort = choose(sort, FitSort, name="order")
    sizes = _take_clipped_sizes(clipped_sizes, has_scenario=scenario is not None)
    scenario = _take_scenario(scenario)
    asked = _find_models(models)
    cache_folder = find_cache_folder() if use_cache else None
    tasks = [FitTask(model.name, found_gpu, scenario, sizes, cache_folder) for model in asked]
    fits = [_answer_at_once(model, task) for model, task in zip(asked, tasks, strict=True)]
    missing = sorted(
        (index for index, fit in enumerate(fits) if fit is None),
        key=lambda index: _guess_order(asked[index], found_gpu),
    )
    say = on_progress or (lambda *_: None)
    num_done = len(asked) - len(missing)
    if missing:
        say(num_done, len(asked), "")
    working = work_in_processes(
        [tasks[index] for index in missing],
        WORKER,
        num_processes=choose_num_processes(len(missing)),
    )
    try:
        for number, (index, fit) in enumerate(working, start=num_done + 1):
            name = asked[missing[index]].name
            fits[missing[index]] = fit or ModelFit(name, reason=_KILLED)
            say(number, len(asked), name)
    except KeyboardInterrupt as interrupt:
        if not use_cache:
            raise
        raise ResumableInterrupt(_KEPT, hint=_HINT) from interrupt
    finally:
        working.close()
    found = [fit for fit in fits if fit is not None]
    return CatalogueFits(found_gpu, scenario, tuple(sort_fits(found, sort)))


def _guess_order(model: PublishedModel, gpu: Gpu) -> tuple[bool, int]:
    """Return a key that puts first what likely takes longest, so that no process waits at the end.

    Models that may fit are run, which takes longer than ruling out the rest. Among these, building
    the largest takes longest.
    """
    total = find_total(model) or 0
    return total * _FEWEST_BYTES_PER_PARAM > gpu.memory_bytes, -total


def _take_clipped_sizes(value: object, *, has_scenario: bool) -> tuple[str, ...]:
    if value is None:
        return () if has_scenario else tuple(SIZES_IN_CONTEXT)
    return tuple(
        choose_word(size, tuple(SIZES_IN_CONTEXT), name="clipped size")
        for size in take_sizes(value, name="clipped sizes")
    )


def _take_scenario(value: object) -> Scenario:
    if value is None:
        return Scenario()
    if isinstance(value, Scenario):
        return value
    raise UsageError(
        "The scenario has to be a Scenario.", hint="Give one, such as Scenario(batch_size=8)."
    )


def _find_models(names: object) -> list[PublishedModel]:
    published = read_published_models()
    if names is None:
        return list(published.values())
    if (
        isinstance(names, str | bytes)
        or not isinstance(names, Collection)
        or not all(isinstance(name, str) for name in names)
    ):
        raise UsageError(
            "The models have to be a list of names.",
            hint='Give a list such as ["mixtral-8x7b"], or None for all models.',
        )
    if not len(names):
        raise UsageError(
            "No models are named.", hint="Give at least one name, or None for all models."
        )
    for name in names:
        if name.lower() not in published:
            raise InputError(
                f"The catalogue has no model '{name}'.",
                hint="Run `moetool models` to list its models.",
            )
    return [published[name] for name in dict.fromkeys(name.lower() for name in names)]


def _answer_at_once(model: PublishedModel, task: FitTask) -> ModelFit | None:
    """Return a model's answer if it follows from facts in the cache; else None."""
    if model.not_counted_because is not None:
        return ModelFit(model.name, reason=model.not_counted_because)
    cache = FactCache(task.cache_folder)
    size = cache.read_size(model.name)
    if size is None:
        return None
    scenario = task.clip(size)

    def refuse() -> Simulation:
        raise _MissingFactError

    try:
        fit = find_model_fit(
            model.name,
            size=size,
            facts=cache.read_facts(model.name, task.gpu, scenario) or RunFacts(),
            gpu=task.gpu,
            scenario=scenario,
            simulate=refuse,
        )
    except _MissingFactError:
        return None
    return replace(fit, note=task.note_clipped(size))
