"""Further answers for a GPU that was named: limits, sharing, offloading and speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moetool.catalogue.gpus import Gpu
from moetool.memory.answers.on_gpus import Limits
from moetool.memory.fitting.limits import find_limits, refuse_search
from moetool.memory.gaps import Gaps
from moetool.memory.gpu_overhead import CONTEXT_BYTES
from moetool.memory.notes.estimate_notes import ONLY_IN_ALL
from moetool.memory.offload.expert_cache import plan_expert_cache
from moetool.memory.offload.plan import plan_offload
from moetool.memory.offload.transfer_times import add_transfer_times
from moetool.memory.result import Estimate
from moetool.memory.scenario import Task
from moetool.memory.sharing.ranks import list_ranks
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.memory.simulated.simulated_run import SimulatedRun
from moetool.memory.speed.bounds import bound_speed
from moetool.memory.speed.experts_touched import UNIFORM, find_choices
from moetool.memory.speed.seen import add_seen_speed
from moetool.quantizing.kinds import Quantization

_BYTES_IN_16_BITS = 2

_ONE_GPU = "Training is estimated for one GPU; its time, sharing and offloading are not."

_WITH_ASSISTANT = "With an assistant, the memory on one GPU is estimated; limits, sharing, offloading and speed are not."


def add_answers(
    estimate: Estimate,
    runs: ModelRuns,
    run: SimulatedRun,
    gpu: Gpu,
    *,
    trace: Path | None,
    gaps: Gaps,
) -> Estimate:
    """Return an estimate with the answers that are only found for a named GPU.

    The returned notes are those on the added answers alone, without those of the given estimate.

    Args:
        runs: The model's runs.
        run: The run of the estimate's scenario on the GPU.
        trace: A recorded trace, whose routing bounds the speed; None for uniform routing.
        gaps: Collects what could not be found out.

    Raises:
        InputError: The trace can't be used.
    """
    scenario, loader = estimate.scenario, runs.loader
    model, plain = loader.load(scenario), loader.load_plain(scenario).routed
    choices = find_choices(plain)
    # Read before anything is looked for, because it refuses traces of other models.
    routing = None
    if trace is not None and choices is not None and model.held is not None:
        # Most estimates read no trace.
        from moetool.memory.speed.recorded_routing import read_routing

        routing = read_routing(trace, choices)
    if scenario.assistant is not None:
        return replace(estimate, notes=(_WITH_ASSISTANT,))
    limits, notes = _find_limits(runs, estimate, run, gpu, gaps=gaps)
    named = None if limits is None else replace(limits, gpu=gpu.id)
    estimate = replace(estimate, limits=named, notes=notes)
    if scenario.task is Task.TRAIN:
        return replace(estimate, notes=(*notes, _ONE_GPU))
    held = model.routed_held
    if held is None:
        return replace(estimate, notes=(*notes, ONLY_IN_ALL))
    loader.say(f"sharing {loader.name(scenario)} between GPUs and the host")
    ranks = gaps.unless_refused(
        "The weights that each of several GPUs would hold are",
        list_ranks,
        held,
        gpu_memory_bytes=gpu.memory_bytes,
        num_gpus=estimate.fit.num_gpus if estimate.fit else None,
        reserve_bytes=CONTEXT_BYTES + run.figures.beyond_weights_and_cache_bytes,
        quantization=scenario.quantization,
    )
    offload = gaps.unless_refused(
        "The experts that would move to the host are",
        plan_offload,
        held,
        gpu_memory_bytes=gpu.memory_bytes,
        total_bytes=run.figures.total_device_bytes,
        batch_size=scenario.num_sequences,
        choices=choices,
        quantization=scenario.quantization,
    )
    if offload is not None and choices is not None and scenario.num_sequences == 1:
        cache = gaps.unless_refused(
            "The single experts that would stay on the GPU are",
            plan_expert_cache,
            held,
            gpu_memory_bytes=gpu.memory_bytes,
            total_bytes=run.figures.total_device_bytes,
            choices=choices,
            routing=UNIFORM if trace is None else trace.name,
            trace=trace,
        )
        offload = replace(offload, expert_cache=cache)
    bound = bound_speed(
        held.model,
        scenario,
        gpu,
        cache_bytes=run.prompt_cache_bytes,
        choices=choices,
        routing=routing,
        unquantized=plain,
    )
    is_in_16_bits = (
        model.runs_in_full_precision
        and scenario.quantization is Quantization.NONE
        and plain.model.dtype.itemsize == _BYTES_IN_16_BITS
    )
    speed = add_seen_speed(bound, scenario, gpu, is_in_16_bits=is_in_16_bits)
    return replace(
        estimate,
        ranks=ranks or (),
        offload=None if offload is None else add_transfer_times(replace(offload, gpu=gpu.id), None),
        speed=replace(speed, gpu=gpu.id),
    )


def _find_limits(
    runs: ModelRuns,
    estimate: Estimate,
    run: SimulatedRun,
    gpu: Gpu,
    *,
    gaps: Gaps,
) -> tuple[Limits | None, tuple[str, ...]]:
    """Return the largest scenarios that fit, if trials are not too much work, and notes on them."""

    def find() -> tuple[Limits, tuple[str, ...]]:
        refuse_search(run, most_work=runs.most_work)
        return find_limits(runs, estimate.scenario, gpu)

    found = gaps.unless_refused("The longest prompt and the largest batch that fit are", find)
    return found or (None, ())
