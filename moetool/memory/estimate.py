"""From a model's name and scenarios to what they need, and what they fit on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from moetool.catalogue.gpus import Gpu, find_gpu, read_gpus
from moetool.catalogue.published import read_reported_systems
from moetool.checkpoint.reference import ModelKind, ModelReference, resolve_model
from moetool.errors import InputError, MoetoolError, UsageError
from moetool.inspection.subject import AskedSource, find_subject
from moetool.memory.device_maps import count_gpus, share_by_device_map
from moetool.memory.experts_touched import Routing, find_choices, read_routing
from moetool.memory.fits import list_fits
from moetool.memory.limits import find_limits
from moetool.memory.measure import measure_scenarios
from moetool.memory.model_runs import CONTEXT_BYTES, ModelRuns
from moetool.memory.offload import plan_offload
from moetool.memory.parallel import share_by_expert_parallel, share_by_tensor_parallel
from moetool.memory.result import Estimate, Fit, Limits, Measurement, RankBytes
from moetool.memory.runs import SimulatedRun
from moetool.memory.scenario import Quantization, Scenario
from moetool.memory.skeletons import SkeletonBuilder, find_context
from moetool.memory.speed import bound_speed

# What figures are for if no GPU is named: they were measured on it.
_DEFAULT_GPU = "h200"
_FIT_QUANTIZATIONS = (Quantization.NONE, Quantization.INT8, Quantization.NF4)
# What several GPUs share the weights by if one is not enough, or one was named.
_NUMS_RANKS = (2, 4, 8)
# Of a GPU's memory, what its driver may keep for itself.
_TIGHT_SHARE = 0.015


def estimate_memory(
    model: str | ModelReference,
    scenarios: Sequence[Scenario] = (Scenario(),),
    *,
    gpu: str | None = None,
    trace: Path | None = None,
    measure: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> list[Estimate]:
    """Return what each of several scenarios of a model needs, without its weights.

    The model's own code runs on torch's meta device under transformers' own `generate`; every
    allocation is followed and replayed through a model of torch's caching allocator.

    Args:
        model: A folder, a config.json, a Hub id, a catalogue name, `demo`, or what `resolve_model`
            made of one.
        scenarios: What is run.
        gpu: A GPU's id or alias, or an amount of memory such as `24GiB`. With it, what fits is told
            in detail, of it alone; None for every known one.
        trace: A recorded trace, by whose routing the speed is bound; None for uniform routing.
        measure: Run each scenario on this machine's GPU as well.
        revision: Branch, tag or commit, for Hub ids.
        trust_remote_code: Run Python code from the model's repository if it needs it.
        on_progress: Is told what is being done.

    Raises:
        InputError: The model, its configuration or the trace can't be used, or the model's code
            can't run without data.
        OutOfMemoryError: A scenario doesn't fit on this machine's GPU.
        UntraceableError: This transformers has no class for the model.
        UsageError: A scenario is not possible with this model, or the GPU is not known.
    """
    named_gpu = None if gpu is None else find_gpu(gpu)
    reference = resolve_model(model) if isinstance(model, str) else model
    if revision is not None and reference.kind is not ModelKind.HUB:
        raise UsageError(
            f"'{reference.text}' is local: it has no revision '{revision}'.",
            hint="Leave --revision out, or name a Hub id.",
        )
    if reference.kind is ModelKind.REPORTED:
        title = read_reported_systems()[reference.text.lower()].title
        raise InputError(
            f"{title} is known from reports alone: there is nothing to run.",
            hint="`moetool inspect` shows what is reported.",
        )
    subject = find_subject(reference, source=AskedSource.AUTO, revision=revision)
    builder = SkeletonBuilder(subject, trust_remote_code=trust_remote_code)
    runs = ModelRuns(builder, named_gpu or read_gpus()[_DEFAULT_GPU])
    for scenario in scenarios:
        builder.refuse_scenario(scenario)
    say = on_progress or (lambda _: None)
    estimates = []
    for scenario in scenarios:
        say(_describe(reference.text, scenario))
        estimates.append(_estimate(runs, scenario, named_gpu=named_gpu, trace=trace))
    if not measure:
        return estimates
    say(f"measuring {reference.text}")
    return [
        replace(estimate, measured=measured, notes=(*estimate.notes, *_note_gpu(measured)))
        for estimate, measured in zip(estimates, measure_scenarios(builder, scenarios), strict=True)
    ]


def _estimate(
    runs: ModelRuns, scenario: Scenario, *, named_gpu: Gpu | None, trace: Path | None
) -> Estimate:
    run = runs.run(scenario)
    stored, stored_notes = runs.get_stored(scenario)
    variants = {name: runs.run(each) for name, each in runs.list_variants(scenario).items()}
    estimate = Estimate(
        model=runs.builder.subject.model,
        scenario=scenario,
        method=run.method,
        gpu=runs.gpu.id,
        figures=run.figures,
        context_bytes=CONTEXT_BYTES,
        peaks=run.peaks,
        variants={name: each.figures for name, each in variants.items()},
        fits=_list_fits(runs, scenario, named_gpu),
        stored=stored,
        notes=(*run.notes, *stored_notes),
    )
    if named_gpu is None:
        return estimate
    skeleton = runs.get_skeleton(scenario)
    plain = runs.get_skeleton(replace(scenario, quantization=Quantization.NONE, is_double_quantized=False))
    choices = find_choices(plain)
    routing = None if trace is None or choices is None else read_routing(trace, choices)
    total_bytes = run.figures.total_device_bytes
    assert total_bytes is not None
    offload = plan_offload(
        skeleton,
        gpu=named_gpu,
        total_bytes=total_bytes,
        batch_size=scenario.batch_size,
        choices=choices,
        quantization=scenario.quantization,
    )
    speed = bound_speed(
        skeleton,
        scenario,
        named_gpu,
        cache_bytes=run.figures.cache_bytes or 0,
        routing=routing,
        unquantized=plain,
    )
    return replace(
        estimate,
        limits=_find_limits(runs, scenario, named_gpu),
        ranks=_list_ranks(runs, scenario, named_gpu, estimate.fit),
        offload=offload,
        speed=speed,
        notes=(*estimate.notes, *speed.notes, *_note_fit(estimate.fit), *_note_calibration(named_gpu)),
    )


def _list_fits(runs: ModelRuns, scenario: Scenario, named_gpu: Gpu | None) -> tuple[Fit, ...]:
    totals = {
        quantization: _find_total_bytes(runs, scenario, quantization)
        for quantization in dict.fromkeys((*_FIT_QUANTIZATIONS, scenario.quantization))
    }

    def count(quantization: Quantization, gpu: Gpu) -> int | None:
        return _count_gpus(runs, _quantize(scenario, quantization), gpu)

    gpus = [named_gpu] if named_gpu is not None else list(read_gpus().values())
    return list_fits(totals, gpus, count_gpus=count)


def _quantize(scenario: Scenario, quantization: Quantization) -> Scenario:
    is_double_quantized = scenario.is_double_quantized and quantization in (
        Quantization.NF4,
        Quantization.FP4,
    )
    return replace(
        scenario, quantization=quantization, is_double_quantized=is_double_quantized
    )


def _find_total_bytes(
    runs: ModelRuns, scenario: Scenario, quantization: Quantization
) -> int | None:
    """Return what a scenario takes under a quantization; None if the model can't be quantized so."""
    try:
        return runs.run(_quantize(scenario, quantization)).figures.total_device_bytes
    except MoetoolError:
        if quantization is scenario.quantization:
            raise
        return None


def _count_gpus(runs: ModelRuns, scenario: Scenario, gpu: Gpu) -> int | None:
    run = runs.run(scenario)
    return count_gpus(
        runs.get_skeleton(scenario),
        gpu_memory_bytes=gpu.memory_bytes,
        cache_bytes=run.figures.cache_bytes or 0,
        activation_bytes=_count_other_bytes(run),
        context_bytes=CONTEXT_BYTES,
        quantization=scenario.quantization,
    )


def _count_other_bytes(run: SimulatedRun) -> int:
    """Return what a run holds in reserve beside weights and cache at its peak."""
    figures = run.figures
    assert figures.peak_reserved_bytes is not None
    return figures.peak_reserved_bytes - figures.weights_bytes - (figures.cache_bytes or 0)


def _find_limits(runs: ModelRuns, scenario: Scenario, gpu: Gpu) -> Limits:
    def total_bytes_of(batch_size: int, num_prompt_tokens: int) -> int:
        run = runs.run(
            replace(scenario, batch_size=batch_size, num_prompt_tokens=num_prompt_tokens)
        )
        assert run.figures.total_device_bytes is not None
        return run.figures.total_device_bytes

    return find_limits(
        total_bytes_of,
        gpu=gpu,
        batch_size=scenario.batch_size,
        num_prompt_tokens=scenario.num_prompt_tokens,
        num_new_tokens=scenario.num_new_tokens,
        context=find_context(runs.builder.make_config()),
    )


def _list_ranks(
    runs: ModelRuns, scenario: Scenario, gpu: Gpu, fit: Fit | None
) -> tuple[RankBytes, ...]:
    skeleton = runs.get_skeleton(scenario)
    run = runs.run(scenario)
    num_gpus = max(2, (fit.num_gpus if fit and fit.num_gpus else 1))
    by_map = share_by_device_map(
        skeleton,
        gpu_memory_bytes=gpu.memory_bytes,
        num_gpus=num_gpus if fit is None or fit.num_gpus else 1,
        reserve_bytes=CONTEXT_BYTES + _count_other_bytes(run),
        quantization=scenario.quantization,
    )
    shared = (
        share(skeleton, num_gpus=number)
        for share in (share_by_tensor_parallel, share_by_expert_parallel)
        for number in _NUMS_RANKS
    )
    return (by_map, *shared)


def _note_fit(fit: Fit | None) -> Iterator[str]:
    if fit is None or fit.headroom_bytes is None:
        return
    if 0 <= fit.headroom_bytes < fit.memory_bytes * _TIGHT_SHARE:
        yield "It is tight: the driver keeps some hundred MiB of a GPU's memory for itself."


def _note_calibration(gpu: Gpu) -> Iterator[str]:
    if gpu.id != _DEFAULT_GPU:
        yield (
            "The CUDA context's size and what kernels take for themselves are an H200's with torch "
            "2.11: on other GPUs they may differ by some hundred MiB."
        )


def _note_gpu(measured: Measurement) -> Iterator[str]:
    yield f"Measured on {measured.gpu} with random weights in {measured.seconds:.1f} s."


def _describe(model: str, scenario: Scenario) -> str:
    return (
        f"simulating {model}: {scenario.batch_size:,} × {scenario.num_prompt_tokens:,} tokens"
    )
