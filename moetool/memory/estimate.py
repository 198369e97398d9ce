"""From a model's name and scenarios to what they need, and what they fit on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from moetool.catalogue.gpus import Gpu, find_gpu, read_gpus
from moetool.catalogue.published import read_reported_systems
from moetool.checkpoint.reference import ModelKind, ModelReference, resolve_model
from moetool.errors import InputError, UsageError
from moetool.inspection.notes import note_class
from moetool.inspection.subject import AskedSource, find_subject
from moetool.memory.experts_touched import find_choices, read_routing
from moetool.memory.measure import measure_scenarios, refuse_unmeasurable
from moetool.memory.model_runs import CONTEXT_BYTES, ModelRuns
from moetool.memory.offload import plan_offload
from moetool.memory.result import Estimate, Fit, Measurement
from moetool.memory.scenario import Quantization, Scenario
from moetool.memory.skeletons import SkeletonBuilder
from moetool.memory.speed import bound_speed
from moetool.memory.what_fits import (
    find_limits_on,
    list_fits_everywhere,
    list_fits_on,
    list_ranks,
    quantize_scenario,
)

# What figures are for if no GPU is named: they were measured on it.
_DEFAULT_GPU = "h200"
# Of a GPU's memory, what its driver may keep for itself.
_TIGHT_SHARE = 0.015
_OTHER_GPUS = (
    "The CUDA context's size and what kernels take for themselves are an H200's with torch 2.11: on "
    "other GPUs they may differ by some hundred MiB."
)


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
    if trace is not None and named_gpu is None:
        raise UsageError(
            "A trace tells how many experts a GPU has to read, and no GPU was named.",
            hint="Name one with --gpu.",
        )
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
    if measure:
        refuse_unmeasurable(scenarios)
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
        fits=list_fits_everywhere(runs, scenario)
        if named_gpu is None
        else list_fits_on(runs, scenario, named_gpu),
        stored=stored,
        notes=(
            *note_class(runs.builder.subject.config, runs.builder.make_config()),
            *run.notes,
            *stored_notes,
        ),
    )
    if named_gpu is None:
        return replace(estimate, notes=(*estimate.notes, _OTHER_GPUS))
    held = runs.get_held(scenario)
    plain = runs.get_skeleton(quantize_scenario(scenario, Quantization.NONE))
    choices = find_choices(plain)
    routing = None if trace is None or choices is None else read_routing(trace, choices)
    total_bytes = run.figures.total_device_bytes
    assert total_bytes is not None
    offload = plan_offload(
        held,
        gpu=named_gpu,
        total_bytes=total_bytes,
        batch_size=scenario.batch_size,
        choices=choices,
        quantization=scenario.quantization,
    )
    speed = bound_speed(
        held,
        scenario,
        named_gpu,
        cache_bytes=run.prompt_cache_bytes,
        routing=routing,
        unquantized=plain,
    )
    return replace(
        estimate,
        limits=find_limits_on(runs, scenario, named_gpu),
        ranks=list_ranks(
            runs, scenario, named_gpu, num_gpus=estimate.fit.num_gpus if estimate.fit else None
        ),
        offload=offload,
        speed=speed,
        notes=(
            *estimate.notes,
            *_note_fit(estimate.fit),
            *_note_calibration(named_gpu),
        ),
    )


def _note_fit(fit: Fit | None) -> Iterator[str]:
    if fit is None or fit.headroom_bytes is None:
        return
    if 0 <= fit.headroom_bytes < fit.memory_bytes * _TIGHT_SHARE:
        yield "It is tight: the driver keeps some hundred MiB of a GPU's memory for itself."


def _note_calibration(gpu: Gpu) -> Iterator[str]:
    if gpu.id != _DEFAULT_GPU:
        yield _OTHER_GPUS


def _note_gpu(measured: Measurement) -> Iterator[str]:
    yield f"Measured on {measured.gpu} with random weights in {measured.seconds:.1f} s."


def _describe(model: str, scenario: Scenario) -> str:
    return f"simulating {model}: {scenario.batch_size:,} × {scenario.num_prompt_tokens:,} tokens"
