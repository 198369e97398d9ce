"""The largest scenarios that fit on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from moetool.catalogue.gpus import Gpu
from moetool.errors import InputError
from moetool.memory.answers.on_gpus import Limits
from moetool.memory.fitting.search import (
    MOST_TOKENS_AT_ONCE,
    FoundLimits,
    search_limits,
)
from moetool.memory.fitting.trials import AnyTrial, LateTrial, Trial
from moetool.memory.scenario import Scenario
from moetool.memory.simulated.cases import HeldEnds
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.memory.simulated.simulated_run import SimulatedRun
from moetool.memory.simulated.work import NUM_BRIEF_PASSES, refuse_work

# A search for limits takes about ten trials.
_NUM_TRIALS = 10
NOTHING_FITS = Limits(largest_prompt_tokens=0, largest_batch_size=0, is_whole_context=False)


def refuse_search(run: SimulatedRun, *, most_work: int) -> None:
    """Refuse a search for limits that would take more work than an estimate may.

    Args:
        run: The run of the scenario that limits are looked for.
        most_work: The work that simulations may take.

    Raises:
        InputError: It would take more.
    """
    refuse_work(run, num_passes=_NUM_TRIALS * NUM_BRIEF_PASSES, most_work=most_work)


def find_limits(
    runs: ModelRuns,
    scenario: Scenario,
    gpu: Gpu,
    *,
    most_tokens_at_once: int = MOST_TOKENS_AT_ONCE,
) -> tuple[Limits, tuple[str, ...]]:
    """Return the largest scenarios that fit on a GPU, and where the search for them ended early.

    Trials run the first and the last decoding step; beyond a limit, the prompt is enough if it doesn't
    fit. There are none if the weights alone don't fit.

    Args:
        runs: The model's runs.
        most_tokens_at_once: The most tokens of a batch that are simulated.

    Raises:
        InputError: A trial can't be simulated, or the weights' size is unknown.
    """
    figures = _require_weights(runs.run(scenario, is_brief=True)).figures
    if figures.weights_bytes + figures.context_bytes > gpu.memory_bytes:
        # Sizes change nothing about that, and each trial would take a simulation.
        return NOTHING_FITS, ()
    num_trials: Counter[str] = Counter()

    def try_sizes(
        batch_size: int, num_prompt_tokens: int, *, is_guess: bool = False
    ) -> AnyTrial | None:
        wanted = "longest prompt" if batch_size == scenario.batch_size else "largest batch"
        num_trials[wanted] += 1
        runs.purpose = f"looking for the {wanted}, trial {num_trials[wanted]}"
        sized = replace(scenario, batch_size=batch_size, num_prompt_tokens=num_prompt_tokens)
        try:
            run = runs.guess(sized) if is_guess else runs.run(sized, is_brief=True)
        except InputError:
            # The model's code may read values of which a large batch has too many.
            if batch_size * num_prompt_tokens > scenario.batch_size * scenario.num_prompt_tokens:
                return None
            raise
        if isinstance(run, HeldEnds):
            return _try_ends(run, gpu.memory_bytes)
        run = _require_weights(run)
        limited = runs.run_within(sized, gpu.memory_bytes, is_brief=True)
        figures = run.figures
        return Trial(
            figures.total_device_bytes,
            fits=limited is not None,
            allocated_bytes=figures.peak_allocated_bytes + figures.context_bytes,
        )

    def is_too_large(batch_size: int, num_prompt_tokens: int) -> bool:
        sized = replace(scenario, batch_size=batch_size, num_prompt_tokens=num_prompt_tokens)
        return runs.begins_beyond(sized, gpu.memory_bytes)

    try:
        found = search_limits(
            try_sizes,
            guess_sizes=partial(try_sizes, is_guess=True),
            is_too_large=is_too_large,
            memory_bytes=gpu.memory_bytes,
            batch_size=scenario.batch_size,
            num_prompt_tokens=scenario.num_prompt_tokens,
            num_new_tokens=scenario.num_new_tokens,
            context=runs.loader.builder.context,
            most_tokens_at_once=most_tokens_at_once,
        )
    finally:
        runs.purpose = None
    return found.limits, tuple(_note_cuts(found))


def _try_ends(ends: HeldEnds, memory_bytes: int) -> AnyTrial:
    room = ends.find_room(memory_bytes)
    if room.needed_bytes is None:
        return LateTrial(
            ends.count_needed,
            fits=room.fits,
            exceeded_bytes=memory_bytes,
            allocated_bytes=room.allocated_bytes,
        )
    return Trial(room.needed_bytes, fits=room.fits, allocated_bytes=room.allocated_bytes)


def _require_weights(run: SimulatedRun | None) -> SimulatedRun:
    if run is None:
        raise InputError(
            "the size of the weights is unknown.",
            hint="Name a folder or Hub id whose files can be read.",
        )
    return run


def _note_cuts(found: FoundLimits) -> Iterator[str]:
    limits = found.limits
    if found.is_prompt_cut:
        yield (
            f"Prompts of more than {limits.largest_prompt_tokens:,} tokens may fit too: longer "
            "ones are not simulated."
        )
    if found.is_batch_cut:
        yield (
            f"Batches of more than {limits.largest_batch_size:,} sequences may fit too: larger "
            "ones are not simulated."
        )
