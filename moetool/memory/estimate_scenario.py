"""The estimate of one scenario.

The steps, in order:

1. `ModelRuns.simulate` runs the scenario on the meta device.
2. `LoadedModel` gives the size of the weights on a GPU.
3. Variants of the weights are simulated, and the results compared with GPUs (`fitting/fits`).
4. For a named GPU, `named_gpu` adds the largest scenarios, several GPUs, experts on the host, and
   lower bounds on time.

Step 1 has to succeed. Anything else that can't be found out is None, with a note.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from moetool.anatomy.skeleton.model_class import note_class
from moetool.catalogue.gpus import Gpu, read_gpus
from moetool.errors import UsageError
from moetool.memory.answers.figures import Basis, MemoryFigures, Method
from moetool.memory.answers.on_gpus import Fit
from moetool.memory.fitting.fits import list_fits_everywhere, list_fits_on
from moetool.memory.fitting.variants import (
    find_dequantized,
    list_other_quantizations,
    list_variants,
)
from moetool.memory.gaps import Gaps
from moetool.memory.gpu_overhead import CONTEXT_BYTES
from moetool.memory.loaded.loaded_model import LoadedModel, ModelLoader
from moetool.memory.named_gpu import add_answers
from moetool.memory.notes.attention_scores import note_scores
from moetool.memory.notes.confirmed import Confirmation, find_confirmation
from moetool.memory.notes.estimate_notes import (
    OTHER_GPUS,
    RESERVE_GIVEN_BACK,
    TIGHT,
    TRACE_UNREAD,
    TRAINING_UNCONFIRMED,
    WEIGHTS_UNKNOWN,
    note_fits_nowhere,
    note_loading,
    note_unconfirmed,
)
from moetool.memory.notes.generation_notes import (
    is_measured,
    is_step_measured,
    note_assistant,
    note_generation,
)
from moetool.memory.notes.peak_causes import note_peak_cause
from moetool.memory.result import Estimate
from moetool.memory.scenario import Scenario, Task
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.memory.simulated.simulated_run import SimulatedRun
from moetool.memory.simulated.work import (
    MOST_WORK,
    NUM_BRIEF_PASSES,
    NUM_PASSES,
    count_modules,
    refuse_work,
)
from moetool.process.fork import Pausing
from moetool.process.garbage import seldom_collected
from moetool.quantizing.kinds import Quantization, QuantizedExperts
from moetool.quantizing.sizes import count_plain_layer
from moetool.simulation.memory.replay.second_process import SecondProcess
from moetool.simulation.training.optimizer_kinds import Optimizer

# The GPU whose CUDA context and kernels the simulation was calibrated on.
CALIBRATED_GPU = "h200"
# The part of a GPU's memory that its driver may keep.
_TIGHT_SHARE = 0.015


@seldom_collected()
def estimate_scenario(
    loader: ModelLoader,
    scenario: Scenario,
    *,
    named_gpu: Gpu | None,
    trace: Path | None,
    most_work: int = MOST_WORK,
    second: SecondProcess | None = None,
    pausing: Pausing | None = None,
) -> Estimate:
    """Return the estimate of one scenario.

    Args:
        loader: Loads the model.
        named_gpu: The GPU that the estimate is for; None for all known ones.
        trace: A recorded trace, whose routing bounds the speed; None for uniform routing.
        most_work: The most work that simulations beyond the scenario's own may take, in units of
            `simulated.work`.
        second: The process that replays long runs; None to replay all in this one.
        pausing: Stops the other threads, so that a copy of this process simulates variants; None if
            this process may not be copied.

    Raises:
        InputError: The model's code can't run without data, or the trace can't be used.
        UsageError: The scenario is not possible with this model.
    """
    runs = ModelRuns(loader, most_work=most_work, second=second)
    model = loader.load(scenario)
    if scenario.task is Task.TRAIN and not model.runs_in_full_precision:
        raise UsageError(
            f"The weights of {loader.builder.subject.model} are published quantized, and quantized "
            "weights can't be trained.",
            hint="Give --dtype bfloat16 to estimate a copy.",
        )
    if pausing is None:
        return _estimate(runs, scenario, named_gpu=named_gpu, trace=trace)
    variants = list_variants(runs, scenario, work=count_modules(model.simulated))
    with runs.sharing(variants, pausing=pausing):
        return _estimate(runs, scenario, named_gpu=named_gpu, trace=trace)


def _estimate(
    runs: ModelRuns, scenario: Scenario, *, named_gpu: Gpu | None, trace: Path | None
) -> Estimate:
    """Return the estimate of a scenario that is possible."""
    loader = runs.loader
    model = loader.load(scenario)
    plain_run = runs.simulate(scenario, meanwhile=partial(_prepare, runs, scenario))
    in_full = runs.run(scenario)
    memory_bytes = None if named_gpu is None else named_gpu.memory_bytes
    run = in_full if in_full is None else _limit(in_full, memory_bytes)
    gaps = Gaps()
    variants = _run_variants(runs, scenario, plain_run, memory_bytes, gaps=gaps)
    fits = _list_fits(runs, scenario, named_gpu, plain_run, gaps=gaps)
    config = loader.builder.make_config()
    dtype = str(loader.builder.find_dtype(scenario)).removeprefix("torch.")
    confirmed = _find_confirmation(config.model_type, scenario, model, dtype=dtype)
    estimate = Estimate(
        model=loader.builder.subject.model,
        scenario=scenario,
        method=plain_run.method if model.runs_in_full_precision else Method.APPROXIMATE,
        gpu=loader.gpu.id,
        is_gpu_named=named_gpu is not None,
        figures=plain_run.figures.show_without_weights() if run is None else run.figures.show(),
        context_bytes=CONTEXT_BYTES,
        peaks=plain_run.show_peaks_without_weights() if run is None else run.peaks,
        variants=variants,
        fits=fits,
        stored=model.stored,
        host_cache_bytes=plain_run.host_cache_bytes if scenario.cache_plan.is_offloaded else None,
        confirmed_on=confirmed.where if confirmed and is_measured(scenario) else None,
        training=None if run is None else run.training,
        assistant=plain_run.assistant,
        loaded_dtype=dtype,
    )
    cause = note_scores(model.skeleton, scenario, estimate.at_peak)
    cause = cause or note_peak_cause(model.skeleton, scenario, estimate.at_peak)
    notes = [
        *loader.builder.subject.notes,
        *note_class(loader.builder.subject.config, config),
        *plain_run.notes,
        *note_generation(scenario, plain_run.host_cache_bytes),
        *note_assistant(plain_run.assistant),
        *model.note_stored(scenario.dtype),
        *model.stored_notes,
    ]
    if confirmed is None and scenario.task is Task.TRAIN:
        notes.append(TRAINING_UNCONFIRMED)
    elif confirmed is None:
        stored = None if model.runs_in_full_precision else model.stored
        notes.append(note_unconfirmed(config.model_type, scenario.quantization, stored))
    if cause is not None:
        notes.append(cause)
    plain_layer_bytes = count_plain_layer(model.skeleton)
    if plain_layer_bytes:
        weights_bytes = plain_run.figures.weights_bytes
        notes.append(note_loading(weights_bytes, plain_layer_bytes=plain_layer_bytes))
    if named_gpu is None:
        if model.older is not None:
            notes.append(model.older.note)
        largest = max(read_gpus().values(), key=lambda gpu: gpu.memory_bytes)
        notes += note_fits_nowhere(estimate.smallest_fits, largest=largest)
        return replace(estimate, notes=(*notes, *gaps.notes, OTHER_GPUS))
    if run is None:
        notes.append(WEIGHTS_UNKNOWN)
    else:
        estimate = add_answers(estimate, runs, run, named_gpu, trace=trace, gaps=gaps)
        notes += estimate.notes
    if trace is not None and estimate.speed is None:
        notes.append(TRACE_UNREAD)
    notes += gaps.notes
    if run is not in_full:
        notes.append(RESERVE_GIVEN_BACK)
    if _is_tight(runs, scenario, estimate.fit):
        notes.append(TIGHT)
    if named_gpu.id != CALIBRATED_GPU:
        notes.append(OTHER_GPUS)
    return replace(estimate, notes=tuple(notes))


def _prepare(runs: ModelRuns, scenario: Scenario, work: int) -> None:
    """Simulate other runs that an estimate needs, as far as their work is allowed."""
    for variant, is_brief in list_variants(runs, scenario, work=work):
        runs.prepare(variant, is_brief=is_brief)


def _limit(run: SimulatedRun, memory_bytes: int | None) -> SimulatedRun:
    """Return a run on a GPU with that much memory; the same run if it doesn't fit there."""
    return run if memory_bytes is None else run.limit_to(memory_bytes) or run


def _run_variants(
    runs: ModelRuns,
    scenario: Scenario,
    plain_run: SimulatedRun,
    memory_bytes: int | None,
    *,
    gaps: Gaps,
) -> dict[str, MemoryFigures]:
    """Return the figures of a scenario with its weights held in other ways, by the variant's name."""
    stored = runs.loader.load(scenario).stored
    if stored is not None and stored.basis is not Basis.COPY:
        in_full = _run_dequantized(runs, scenario, plain_run, gaps=gaps)
        held = {
            "as_published": (plain_run, stored.packed_bytes),
            "dequantized": (in_full, stored.dequantized_bytes),
        }
        return {
            name: _limit(
                run.shift_weights(num_bytes - run.own_weights_bytes), memory_bytes
            ).figures.show()
            for name, (run, num_bytes) in held.items()
            if num_bytes is not None and run is not None
        }
    if scenario.quantization is Quantization.NONE:
        return {}

    def run_variant(variant: Scenario) -> SimulatedRun | None:
        if variant != scenario:
            refuse_work(plain_run, num_passes=NUM_PASSES, most_work=runs.most_work)
        return runs.run(variant)

    variants = {
        "transformers": replace(scenario, experts=QuantizedExperts.AS_LOADED),
        "experts_quantized": replace(scenario, experts=QuantizedExperts.QUANTIZED),
    }
    found = {
        name: gaps.unless_refused(f"The memory of the variant {name} is", run_variant, variant)
        for name, variant in variants.items()
    }
    return {
        name: _limit(run, memory_bytes).figures.show()
        for name, run in found.items()
        if run is not None
    }


def _run_dequantized(
    runs: ModelRuns, scenario: Scenario, plain_run: SimulatedRun, *, gaps: Gaps
) -> SimulatedRun | None:
    """Return a run with the modules of dequantized weights, which make other activations."""
    dequantized = find_dequantized(runs, scenario)
    if dequantized is None:
        return plain_run

    def run() -> SimulatedRun:
        refuse_work(plain_run, num_passes=NUM_PASSES, most_work=runs.most_work)
        return runs.simulate(dequantized)

    return gaps.unless_refused("The memory with dequantized weights is", run)


def _list_fits(
    runs: ModelRuns,
    scenario: Scenario,
    gpu: Gpu | None,
    run: SimulatedRun,
    *,
    gaps: Gaps,
) -> tuple[Fit, ...]:
    """Return where a scenario fits, under each quantization that can be simulated."""
    others = list_other_quantizations(scenario)
    quantizations = others
    if others and not gaps.is_allowed(
        f"Whether it fits with the quantization {' or '.join(others)} is",
        refuse_work,
        run,
        num_passes=len(others) * NUM_BRIEF_PASSES,
        most_work=runs.most_work,
    ):
        quantizations = []
    subject = "The GPUs that it fits on are"
    if gpu is not None:
        found = gaps.unless_refused(
            subject, list_fits_on, runs, scenario, gpu, quantizations=quantizations
        )
        return found or ()
    # A device map takes about as long as a pass.
    is_counted = not scenario.is_on_one_gpu and gaps.is_allowed(
        "The number of GPUs that it needs where one is not enough is",
        refuse_work,
        run,
        num_passes=len({each.memory_bytes for each in read_gpus().values()}),
        most_work=runs.most_work,
    )
    found = gaps.unless_refused(
        subject,
        list_fits_everywhere,
        runs,
        scenario,
        quantizations=quantizations,
        is_counted=is_counted,
    )
    return found or ()


def _find_confirmation(
    model_type: str, scenario: Scenario, model: LoadedModel, *, dtype: str
) -> Confirmation | None:
    """Return measured runs of the same kind of model with weights held in the same way."""
    if scenario.task is Task.TRAIN:
        if not is_step_measured(scenario) or dtype != "bfloat16":
            return None
        is_light = scenario.lora_rank is not None or scenario.optimizer is Optimizer.ADAMW_8BIT
        return find_confirmation(
            model_type, scenario.quantization, is_training=True, is_light=is_light
        )
    if model.runs_in_full_precision:
        return find_confirmation(model_type, scenario.quantization, scenario.experts)
    if model.stored is not None and model.stored.is_held_packed:
        return find_confirmation(
            model_type, scenario.quantization, scenario.experts, stored_as=model.stored.method_name
        )
    return None


def _is_tight(runs: ModelRuns, scenario: Scenario, fit: Fit | None) -> bool:
    if fit is None or not fit.fits:
        return False
    return runs.run_within(scenario, int(fit.memory_bytes * (1 - _TIGHT_SHARE))) is None
