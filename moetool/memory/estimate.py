"""Memory estimates of a model, for scenarios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from moetool.anatomy.headers.published_format import find_quantization
from moetool.catalogue.gpus import Gpu, read_gpus
from moetool.catalogue.published import read_reported_systems
from moetool.checkpoint.reference import ModelKind, ModelReference, resolve_model
from moetool.checkpoint.subject import AskedSource, Subject, find_subject
from moetool.choices import choose_word, take_flag, take_path, take_sizes, take_text
from moetool.errors import UsageError
from moetool.memory.assisting.refusals import refuse_elsewhere
from moetool.memory.estimate_scenario import CALIBRATED_GPU, estimate_scenario
from moetool.memory.layouts.plan import plan_layouts, refuse_layouts
from moetool.memory.loaded.loaded_model import ModelLoader
from moetool.memory.loaded.skeletons import SkeletonBuilder
from moetool.memory.machine.gpu_group import GpuGroup, take_group
from moetool.memory.machine.local_gpu import take_gpu
from moetool.memory.measure import has_weights, refuse_unmeasurable
from moetool.memory.notes.estimate_notes import note_clipped
from moetool.memory.receipts.measuring import add_measurements
from moetool.memory.result import Estimate
from moetool.memory.scenario import SIZES_IN_CONTEXT, Dtype, Scenario, take_scenarios
from moetool.memory.serving.answer import ServingOptions
from moetool.memory.serving.deployment import choose_default_way
from moetool.memory.serving.serve import refuse_sharing, serve_model
from moetool.memory.unsimulated.reported import estimate_reported, refuse_for_reported
from moetool.memory.unsimulated.tpu import estimate_on_tpu, refuse_on_tpu
from moetool.process.fork import Pausing
from moetool.process.quiet import quiet_transformers
from moetool.process.turns import in_turn
from moetool.simulation.memory.replay.second_process import SecondProcess, is_worthwhile


def estimate_memory(
    model: str | PathLike[str] | ModelReference,
    scenarios: Sequence[Scenario] | None = None,
    *,
    clipped_sizes: Sequence[str] | None = None,
    gpu: str | Gpu | None = None,
    trace: str | Path | None = None,
    measure: bool = False,
    parallel: str | Sequence[str] | GpuGroup | None = None,
    num_nodes: int = 1,
    serving: ServingOptions | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None] | None = None,
    pausing: Pausing | None = None,
) -> list[Estimate]:
    """Return the memory that each of several scenarios of a model needs, except of GGUF files.

    The other arguments and the errors are those of `moetool.estimate_memory`.

    Args:
        pausing: Stops the other threads, so that a copy of this process simulates variants; None if
            this process may not be copied.
    """
    with SecondProcess() as second:
        return estimate_part(
            model,
            scenarios,
            slice(None),
            clipped_sizes=clipped_sizes,
            gpu=gpu,
            trace=trace,
            measure=measure,
            serving=serving,
            parallel=parallel,
            num_nodes=num_nodes,
            revision=revision,
            trust_remote_code=trust_remote_code,
            on_progress=on_progress,
            second=second if is_worthwhile() else None,
            pausing=pausing,
        )


@in_turn()
@quiet_transformers()
def estimate_part(
    model: str | PathLike[str] | ModelReference,
    scenarios: Sequence[Scenario] | None,
    part: slice,
    *,
    clipped_sizes: Sequence[str] | None = None,
    gpu: str | Gpu | None = None,
    trace: str | Path | None = None,
    measure: bool = False,
    serving: ServingOptions | None = None,
    parallel: str | Sequence[str] | GpuGroup | None = None,
    num_nodes: int = 1,
    revision: str | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None] | None = None,
    second: SecondProcess | None = None,
    pausing: Pausing | None = None,
) -> list[Estimate]:
    """Return the estimates of some of several scenarios, after all of them have been checked.

    The other arguments and the errors are those of `estimate_memory`: what is wrong with any of the
    scenarios is raised before one of them runs.

    Args:
        part: The scenarios to estimate, by their positions.
        second: The process that replays long runs; None to replay all in this one.
        pausing: As that of `estimate_memory`.
    """
    if clipped_sizes is None:
        clipped_sizes = SIZES_IN_CONTEXT if scenarios is None else ()
    asked = take_scenarios(scenarios)
    clipped_sizes = [
        choose_word(size, SIZES_IN_CONTEXT, name="clipped size")
        for size in take_sizes(clipped_sizes, name="clipped sizes")
    ]
    measure = take_flag(measure, name="measure")
    trust_remote_code = take_flag(trust_remote_code, name="trust_remote_code")
    trace = None if trace is None else take_path(trace, name="trace")
    group = (
        parallel
        if isinstance(parallel, GpuGroup)
        else take_group(gpu, parallel, num_nodes=num_nodes, default=choose_default_way(serving))
    )
    if group is not None:
        gpu = group.gpu
    named_gpu = None if gpu is None else _take_gpu(gpu)
    if trace is not None and named_gpu is None:
        raise UsageError(
            "A trace is only used to bound the speed of a GPU, and no GPU was named.",
            hint="Leave out --trace, or name a GPU with --gpu.",
        )
    if serving is not None and named_gpu is None:
        raise UsageError(
            f"How {serving.engine} serves a model depends on the GPU, and none was named.",
            hint="Name a GPU with --gpu.",
        )
    reference = resolve_model(model)
    revision = reference.choose_revision(revision)
    alone = {"--parallel": group is not None, "--engine": serving is not None, "--measure": measure}
    if reference.kind is ModelKind.REPORTED:
        system = read_reported_systems()[reference.text.lower()]
        given = {"--trace": trace is not None, **alone}
        refuse_for_reported(system, options=tuple(flag for flag in given if given[flag]))
        return [
            estimate_reported(reference.text, system, scenario, gpu=named_gpu)
            for scenario in asked[part]
        ]
    subject = find_subject(reference, source=AskedSource.AUTO, revision=revision)
    builder = SkeletonBuilder(subject, trust_remote_code=trust_remote_code)
    scenarios = [builder.clip_scenario(scenario, clipped_sizes) for scenario in asked]
    for scenario in scenarios:
        builder.refuse_scenario(scenario)
        refuse_elsewhere(scenario, where=next((flag for flag in alone if alone[flag]), None))
    if measure:
        refuse_unmeasurable(scenarios, has_weights=has_weights(builder))
        _refuse_published_quantized(subject, scenarios)
    say = on_progress or (lambda _: None)
    calibrated = read_gpus()[CALIBRATED_GPU]
    if named_gpu is not None and named_gpu.is_tpu:
        given = {"--trace": trace is not None, **alone}
        options = tuple(flag for flag in given if given[flag])
        for scenario in scenarios:
            refuse_on_tpu(named_gpu, scenario, options=options)
        loader = ModelLoader(builder, calibrated, say)
        return [estimate_on_tpu(loader, scenario, named_gpu) for scenario in scenarios[part]]
    loader = ModelLoader(builder, named_gpu or calibrated, say)
    # An engine shares the model in its own way, in place of transformers'.
    shared = group if serving is None else None
    if shared is not None:
        for scenario in scenarios:
            refuse_layouts(loader, scenario, shared)
    if serving is not None:
        for scenario in scenarios:
            refuse_sharing(loader.load(scenario), serving, group)
    estimates = []
    for wanted, scenario in zip(asked[part], scenarios[part], strict=True):
        estimate = estimate_scenario(
            loader, scenario, named_gpu=named_gpu, trace=trace, second=second, pausing=pausing
        )
        if shared is not None:
            estimate = replace(estimate, layouts=plan_layouts(loader, estimate, shared))
        if serving is not None and named_gpu is not None:
            answer = serve_model(loader.load(scenario), scenario, named_gpu, serving, group=group)
            estimate = replace(estimate, serving=answer)
        if scenario != wanted and builder.context is not None:
            note = note_clipped(wanted, scenario, context=builder.context)
            estimate = replace(estimate, notes=(note, *estimate.notes))
        estimates.append(estimate)
    if not measure:
        return estimates
    say(f"measuring {reference.text}")
    return add_measurements(estimates, builder)


def _refuse_published_quantized(subject: Subject, scenarios: Sequence[Scenario]) -> None:
    method = find_quantization(subject)
    if method is not None and any(scenario.dtype == Dtype.AUTO for scenario in scenarios):
        raise UsageError(
            f"The weights of {subject.model} are published quantized ({method.partition(',')[0]}), "
            "and random weights can only stand in for plain ones.",
            hint="Give --dtype bfloat16 to measure a copy, or leave out --measure.",
        )


def _take_gpu(gpu: object) -> Gpu:
    return gpu if isinstance(gpu, Gpu) else take_gpu(take_text(gpu, name="GPU"))
