"""From a model's name and scenarios to what they need, and what they fit on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moetool.anatomy.headers.published_format import find_quantization
from moetool.anatomy.skeleton.model_class import note_class
from moetool.catalogue.gpus import Gpu, find_gpu, read_gpus
from moetool.catalogue.published import read_reported_systems
from moetool.checkpoint.reference import ModelKind, ModelReference, resolve_model
from moetool.checkpoint.subject import AskedSource, Subject, find_subject
from moetool.choices import take_flag, take_path, take_text
from moetool.errors import InputError, MoetoolError, UsageError
from moetool.memory.attention_scores import note_scores
from moetool.memory.confirmed import Confirmation, find_confirmation
from moetool.memory.fitting.what_fits import (
    find_limits_on,
    list_fits_everywhere,
    list_fits_on,
    list_ranks,
    quantize_scenario,
)
from moetool.memory.loaded.skeletons import SkeletonBuilder
from moetool.memory.measure import has_weights, measure_scenarios, refuse_unmeasurable
from moetool.memory.offload.plan import plan_offload
from moetool.memory.result import (
    Basis,
    Estimate,
    Fit,
    Measurement,
    Offload,
    SpeedBound,
    StoredWeights,
)
from moetool.memory.scenario import Dtype, Scenario
from moetool.memory.simulated.model_runs import CONTEXT_BYTES, ModelRuns
from moetool.memory.simulated.runs import SimulatedRun
from moetool.memory.speed.bounds import bound_speed
from moetool.memory.speed.experts_touched import find_choices, read_routing
from moetool.quantized.kinds import Quantization, QuantizedExperts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moetool.anatomy.routing.moe_layers import MoeLayer

_T = TypeVar("_T")
# What figures are for if no GPU is named: they were measured on it.
_DEFAULT_GPU = "h200"
# Of a GPU's memory, what its driver may keep for itself.
_TIGHT_SHARE = 0.015
_ONLY_IN_ALL = (
    "Sharing, offloading and speed are left out: what each parameter takes packed is not known, only "
    "what all take together."
)
_UNCONFIRMED = (
    "No GPU has confirmed estimates of {} yet: it may do something that none of the measured models "
    "do."
)
_NO_MORE = "Limits, sharing, offloading and speed are left out: they need the bytes of the weights."
_TRACE_UNREAD = "The trace was not read: it would bound the speed, which is left out."
_RETRIED = (
    "It fits because torch's allocator gives back what it holds in reserve where the GPU has no room "
    "left, which takes time: on a GPU with more memory it would reserve more."
)
_OTHER_GPUS = (
    "The CUDA context's size and what kernels take for themselves are an H200's with torch 2.11: on "
    "other GPUs they may differ by some hundred MiB."
)


def estimate_memory(
    model: str | ModelReference,
    scenarios: Sequence[Scenario] = (Scenario(),),
    *,
    gpu: str | None = None,
    trace: str | Path | None = None,
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
    scenarios = _take_scenarios(scenarios)
    measure = take_flag(measure, name="measure")
    trust_remote_code = take_flag(trust_remote_code, name="trust_remote_code")
    trace = None if trace is None else take_path(trace, name="trace")
    named_gpu = None if gpu is None else find_gpu(take_text(gpu, name="GPU"))
    if trace is not None and named_gpu is None:
        raise UsageError(
            "A trace tells how many experts a GPU has to read, and no GPU was named.",
            hint="Name one with --gpu.",
        )
    reference = model if isinstance(model, ModelReference) else resolve_model(model)
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
        refuse_unmeasurable(scenarios, has_weights=has_weights(builder))
        _refuse_published_quantized(subject, scenarios)
    say = on_progress or (lambda _: None)
    estimates = []
    for scenario in scenarios:
        say(_describe(reference.text, scenario))
        estimates.append(_estimate(runs, scenario, named_gpu=named_gpu, trace=trace))
    if not measure:
        return estimates
    say(f"measuring {reference.text}")
    return [
        replace(
            estimate,
            measured=measured,
            notes=(*estimate.notes, *_note_gpu(measured, estimate.scenario.quantization)),
        )
        for estimate, measured in zip(estimates, measure_scenarios(builder, scenarios), strict=True)
    ]


def _estimate(
    runs: ModelRuns, scenario: Scenario, *, named_gpu: Gpu | None, trace: Path | None
) -> Estimate:
    in_full = runs.run(scenario)
    run = runs.run_on(scenario, None if named_gpu is None else named_gpu.memory_bytes)
    stored, stored_notes = runs.get_stored(scenario)
    unknown = _Unknown()
    memory_bytes = None if named_gpu is None else named_gpu.memory_bytes
    variants = {
        name: unknown.unless(
            f"What it takes with the variant {name} is", runs.run_on, each, memory_bytes
        )
        for name, each in runs.list_variants(scenario).items()
    }
    fits = unknown.unless(
        "What it fits on is",
        partial(list_fits_everywhere, runs, scenario)
        if named_gpu is None
        else partial(list_fits_on, runs, scenario, named_gpu),
    )
    config = runs.builder.make_config()
    confirmed = _find_confirmation(config.model_type, scenario, stored)
    estimate = Estimate(
        model=runs.builder.subject.model,
        scenario=scenario,
        method=run.method,
        gpu=runs.gpu.id,
        figures=run.figures,
        context_bytes=CONTEXT_BYTES,
        peaks=run.peaks,
        variants={
            **{name: each.figures for name, each in variants.items() if each is not None},
            **runs.list_stored_variants(scenario, memory_bytes),
        },
        fits=fits or (),
        stored=stored,
        notes=(
            *note_class(runs.builder.subject.config, config),
            *run.notes,
            *stored_notes,
            *([] if confirmed else [_UNCONFIRMED.format(_name_kind(config.model_type, stored))]),
        ),
        confirmed_on=None if confirmed is None else confirmed.where,
    )
    scores = note_scores(runs.get_skeleton(scenario), scenario, estimate.at_peak)
    if scores is not None:
        estimate = replace(estimate, notes=(*estimate.notes, scores))
    if named_gpu is None:
        return replace(estimate, notes=(*estimate.notes, *unknown.notes, _OTHER_GPUS))
    if run.figures.total_device_bytes is not None:
        estimate = _add_limits(estimate, runs, run, named_gpu, trace=trace, unknown=unknown)
    else:
        estimate = replace(estimate, notes=(*estimate.notes, _NO_MORE))
    return replace(
        estimate,
        notes=(
            *estimate.notes,
            *([_TRACE_UNREAD] if trace is not None and estimate.speed is None else []),
            *unknown.notes,
            *([_RETRIED] if run is not in_full else []),
            *_note_fit(runs, scenario, estimate.fit),
            *_note_calibration(named_gpu),
        ),
    )


def _find_confirmation(
    model_type: str, scenario: Scenario, stored: StoredWeights | None
) -> Confirmation | None:
    """Return the runs that confirmed estimates of weights that are held as this scenario's are."""
    if _runs_in_full_precision(stored) and scenario.experts is QuantizedExperts.AS_LOADED:
        return find_confirmation(model_type, scenario.quantization)
    return None


def _name_kind(model_type: str, stored: StoredWeights | None) -> str:
    if stored is None or _runs_in_full_precision(stored):
        return f"models of the type {model_type}"
    return f"models of the type {model_type} in {stored.method.partition(',')[0]}"


def _runs_in_full_precision(stored: StoredWeights | None) -> bool:
    return (
        stored is None
        or stored.basis is Basis.COPY
        or (stored.basis is Basis.LOADED and bool(stored.is_dequantized))
    )


def _add_limits(
    estimate: Estimate,
    runs: ModelRuns,
    run: SimulatedRun,
    gpu: Gpu,
    *,
    trace: Path | None,
    unknown: _Unknown,
) -> Estimate:
    """Return an estimate with what more of it fits, is shared or moved, and how fast it runs."""
    scenario = estimate.scenario
    limits = unknown.unless(
        "The longest prompt and the largest batch that fit are",
        partial(find_limits_on, runs, scenario, gpu),
    )
    held = runs.get_held(scenario)
    if held is None:
        return replace(estimate, limits=limits, notes=(*estimate.notes, _ONLY_IN_ALL))
    num_gpus = estimate.fit.num_gpus if estimate.fit else None
    plain = runs.get_skeleton(quantize_scenario(scenario, Quantization.NONE))
    choices = find_choices(plain)
    return replace(
        estimate,
        limits=limits,
        ranks=unknown.unless(
            "What several GPUs would hold is",
            partial(list_ranks, runs, scenario, gpu, num_gpus=num_gpus),
        )
        or (),
        offload=unknown.unless(
            "What would move to the host is",
            partial(_plan_offload, held, choices, scenario, gpu, run),
        ),
        speed=_bound_speed(held, plain, choices, scenario, gpu, run, trace=trace),
    )


def _refuse_published_quantized(subject: Subject, scenarios: Sequence[Scenario]) -> None:
    method = find_quantization(subject)
    if method is not None and any(scenario.dtype == Dtype.AUTO for scenario in scenarios):
        raise UsageError(
            f"The weights of {subject.model} are published quantized ({method.partition(',')[0]}), "
            "and random weights stand for plain ones alone.",
            hint="Give --dtype bfloat16 to measure a copy, or leave --measure out.",
        )


def _take_scenarios(scenarios: object) -> list[Scenario]:
    if isinstance(scenarios, Sequence) and all(isinstance(each, Scenario) for each in scenarios):
        return list(scenarios)
    raise UsageError(
        "The scenarios have to be a list of Scenario.",
        hint="Give a list such as [Scenario(batch_size=8)].",
    )


class _Unknown:
    """What could not be found out beside the estimate itself, which stands without it.

    Attributes:
        notes: What is unknown and why, a sentence each.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def unless(self, what: str, find: Callable[..., _T], *args: Any) -> _T | None:
        """Return what a function finds; None, and a note, if it can't.

        Args:
            what: The subject and verb of the note.
            find: The function.
            args: What it is given.
        """
        try:
            return find(*args)
        except MoetoolError as error:
            self.notes.append(f"{what} unknown: {error.message}")
            return None


def _plan_offload(
    held: PreTrainedModel,
    choices: Mapping[MoeLayer, int] | None,
    scenario: Scenario,
    gpu: Gpu,
    run: SimulatedRun,
) -> Offload | None:
    total_bytes = run.figures.total_device_bytes
    assert total_bytes is not None
    return plan_offload(
        held,
        gpu=gpu,
        total_bytes=total_bytes,
        batch_size=scenario.batch_size,
        choices=choices,
        quantization=scenario.quantization,
    )


def _bound_speed(
    held: PreTrainedModel,
    plain: PreTrainedModel,
    choices: Mapping[MoeLayer, int] | None,
    scenario: Scenario,
    gpu: Gpu,
    run: SimulatedRun,
    *,
    trace: Path | None,
) -> SpeedBound:
    routing = None if trace is None or choices is None else read_routing(trace, choices)
    return bound_speed(
        held,
        scenario,
        gpu,
        cache_bytes=run.prompt_cache_bytes,
        routing=routing,
        unquantized=plain,
    )


def _note_fit(runs: ModelRuns, scenario: Scenario, fit: Fit | None) -> Iterator[str]:
    if fit is None or not fit.fits:
        return
    if runs.run_within(scenario, int(fit.memory_bytes * (1 - _TIGHT_SHARE))) is None:
        yield "It is tight: the driver keeps some hundred MiB of a GPU's memory for itself."


def _note_calibration(gpu: Gpu) -> Iterator[str]:
    if gpu.id != _DEFAULT_GPU:
        yield _OTHER_GPUS


def _note_gpu(measured: Measurement, quantization: Quantization) -> Iterator[str]:
    weights = "random weights" if quantization is Quantization.NONE else "the checkpoint's weights"
    yield f"Measured on {measured.gpu} with {weights} in {measured.seconds:.1f} s."
    if measured.held_before_bytes is None:
        yield "What other processes hold on the GPU is not known: it counts in the measured total."
    elif measured.held_before_bytes:
        yield (
            f"The GPU held {measured.held_before_bytes / 2**20:,.0f} MiB before it was measured, which "
            "the measured total leaves out."
        )


def _describe(model: str, scenario: Scenario) -> str:
    return f"simulating {model}: {scenario.batch_size:,} × {scenario.num_prompt_tokens:,} tokens"
