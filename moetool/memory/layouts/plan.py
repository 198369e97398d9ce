"""Layouts of a run on several GPUs: each rank's memory, and the fewest GPUs that are enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moetool.errors import InputError, UsageError
from moetool.memory.answers.figures import Method
from moetool.memory.answers.layout import Layout, RankMemory
from moetool.memory.gpu_overhead import CONTEXT_BYTES
from moetool.memory.layouts.mapped_runs import run_by_device_map
from moetool.memory.layouts.shared_runs import NUMS_GPUS, SharedRuns
from moetool.memory.loaded.loaded_model import ModelLoader
from moetool.memory.machine.gpu_group import GpuGroup, ParallelWay
from moetool.memory.result import Estimate
from moetool.memory.scenario import Scenario
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.memory.simulated.simulated_run import SimulatedRun
from moetool.wording import number_of

_SHARED = (ParallelWay.TENSOR, ParallelWay.EXPERT)
# Measured on two H200s and on four H100s, see docs/models/memory-accuracy.md.
_NUM_MEASURED_GPUS = 4
_NCCL = (
    "NCCL's own buffers are outside torch's allocator, depend on its version and on how the GPUs are "
    "connected, and are left out of the device total: NCCL 2.28 took 3.1 GiB of each of two H200s and of "
    "four H100s."
)
_NOT_CONFIRMED = {
    ParallelWay.DEVICE_MAP: "Runs on 2 to 4 GPUs were measured and confirmed; runs on more were not."
} | dict.fromkeys(
    _SHARED,
    "Runs on 2 and 4 GPUs and single ranks of 8 were measured and confirmed; whole runs on more than 4 "
    "were not.",
)
_NETWORK = (
    "Each layer's sums would go over the network between nodes: keep tensor and expert parallelism "
    "within a node where it fits."
)


def refuse_layouts(loader: ModelLoader, scenario: Scenario, group: GpuGroup) -> None:
    """Refuse ways of sharing that don't work with a model, before anything is simulated.

    Raises:
        UsageError: The family has no such plan, or a size is not divisible by the number of GPUs.
    """
    for way in group.ways:
        if way in _SHARED:
            SharedRuns(loader, scenario, way).refuse(group.num_gpus)
    if ParallelWay.DATA in group.ways and scenario.batch_size < group.num_gpus:
        raise UsageError(
            f"{group.num_gpus} GPUs can't share {scenario.batch_size} "
            f"{'sequence' if scenario.batch_size == 1 else 'sequences'}.",
            hint=f"Give --batch-size {group.num_gpus} or more, or choose --parallel device-map.",
        )


def plan_layouts(loader: ModelLoader, estimate: Estimate, group: GpuGroup) -> tuple[Layout, ...]:
    """Return a layout for each way of sharing.

    Args:
        loader: Loads the model.
        estimate: The estimate of the same scenario on one GPU of the kind.
        group: The GPUs and the ways.
    """
    layouts = []
    for way in group.ways:
        layout = Layout(
            way=way.value,
            gpu=group.gpu.id,
            num_gpus=group.num_gpus,
            num_nodes=group.num_nodes,
            method=estimate.method,
            notes=_list_notes(way, group, estimate.scenario),
            library_bytes=None if way in _SHARED and group.num_gpus > 1 else 0,
        )
        try:
            layouts.append(_PLANS[way](loader, estimate, group, layout))
        except InputError as error:
            note = f"What each GPU holds is unknown: {error.message}"
            layouts.append(replace(layout, notes=(note,)))
    return tuple(layouts)


def share_sequences(batch_size: int, *, num_gpus: int) -> list[int]:
    """Return the number of sequences that each GPU runs on its own, the first ones one more."""
    least, left = divmod(batch_size, num_gpus)
    return [least + (rank < left) for rank in range(num_gpus)]


def _list_notes(way: ParallelWay, group: GpuGroup, scenario: Scenario) -> tuple[str, ...]:
    notes = []
    if way is not ParallelWay.DATA and group.num_gpus > _NUM_MEASURED_GPUS:
        notes.append(_NOT_CONFIRMED[way])
    if way in _SHARED and group.num_gpus > 1:
        notes.append(_NCCL)
        if group.num_nodes > 1:
            notes.append(_NETWORK)
    if way is ParallelWay.DATA and group.num_gpus > 1:
        least, left = divmod(scenario.batch_size, group.num_gpus)
        notes.append(
            f"{scenario.batch_size:,} sequences don't divide evenly: {left:,} of "
            f"{group.num_gpus:,} GPUs run {least + 1:,}, the others {least:,}."
            if left
            else f"Each GPU runs {number_of(least, 'sequence')}."
        )
    return tuple(notes)


def _plan_shared(
    loader: ModelLoader, estimate: Estimate, group: GpuGroup, layout: Layout
) -> Layout:
    runs = SharedRuns(loader, estimate.scenario, ParallelWay(layout.way))
    whole = ModelRuns(loader)
    memory_bytes = group.gpu.memory_bytes
    if group.num_gpus == 1:
        alone = _run_whole(whole, estimate.scenario)
        layout = _fill(layout, [alone], [estimate.scenario.batch_size], memory_bytes)
    else:
        sizes = [estimate.scenario.batch_size] * group.num_gpus
        layout = _fill(layout, runs.run_all(group.num_gpus), sizes, memory_bytes)
    if estimate.does_fit:
        return replace(layout, fewest_gpus=1)
    for number in sorted({*NUMS_GPUS, group.num_gpus}):
        if runs.find_obstacle(number) is not None:
            continue
        if max(runs.share(number).weights_bytes) + CONTEXT_BYTES > memory_bytes:
            continue
        is_enough = layout.fits
        if number != group.num_gpus:
            found = runs.run_all(number, is_brief=True)
            is_enough = all(run.limit_to(memory_bytes) is not None for run in found)
        if is_enough:
            return replace(layout, fewest_gpus=number)
    return layout


def _plan_data(loader: ModelLoader, estimate: Estimate, group: GpuGroup, layout: Layout) -> Layout:
    runs, scenario = ModelRuns(loader), estimate.scenario
    sizes = share_sequences(scenario.batch_size, num_gpus=group.num_gpus)
    found = [_run_whole(runs, replace(scenario, batch_size=size)) for size in sizes]
    layout = _fill(layout, found, sizes, group.gpu.memory_bytes)
    largest = estimate.limits.largest_batch_size if estimate.limits else 0
    if not largest:
        return replace(layout, fewest_gpus=1 if layout.fits and group.num_gpus == 1 else None)
    return replace(layout, fewest_gpus=-(-scenario.batch_size // largest))


def _plan_device_map(
    loader: ModelLoader, estimate: Estimate, group: GpuGroup, layout: Layout
) -> Layout:
    memory_bytes = group.gpu.memory_bytes
    fewest = estimate.fit.num_gpus if estimate.fit else None
    if fewest is not None and fewest > group.num_gpus:
        note = f'With device_map="auto" this run needs {fewest:,} GPUs.'
        return replace(layout, fits=False, fewest_gpus=fewest, notes=(note,))
    if group.num_gpus == 1:
        found = [_run_whole(ModelRuns(loader), estimate.scenario)]
    else:
        found = run_by_device_map(
            loader, estimate.scenario, memory_bytes=memory_bytes, num_gpus=group.num_gpus
        )
    sizes = [estimate.scenario.batch_size] * len(found)
    layout = _fill(layout, found, sizes, memory_bytes)
    num_empty = sum(not run.figures.weights_bytes for run in found)
    if num_empty:
        note = (
            f"transformers puts whole layers on one GPU after another: {num_empty:,} of "
            f"{group.num_gpus:,} GPUs {'gets' if num_empty == 1 else 'get'} none."
        )
        layout = replace(layout, notes=(*layout.notes, note))
    if layout.fits and fewest is None:
        fewest = group.num_gpus
    return replace(layout, fewest_gpus=fewest)


_PLANS = {
    ParallelWay.TENSOR: _plan_shared,
    ParallelWay.EXPERT: _plan_shared,
    ParallelWay.DATA: _plan_data,
    ParallelWay.DEVICE_MAP: _plan_device_map,
}


def _run_whole(runs: ModelRuns, scenario: Scenario) -> SimulatedRun:
    run = runs.run(scenario)
    if run is None:
        raise InputError(
            "the size of the weights on a GPU isn't stated.", hint="Give --dtype bfloat16."
        )
    return run


def _fill(
    layout: Layout, runs: Sequence[SimulatedRun], sizes: Sequence[int], memory_bytes: int
) -> Layout:
    ranks = tuple(
        _describe(rank, run, size, memory_bytes)
        for rank, (run, size) in enumerate(zip(runs, sizes, strict=True))
    )
    methods = {run.method for run in runs}
    notes = dict.fromkeys(note for run in runs for note in run.notes)
    return replace(
        layout,
        ranks=ranks,
        fits=all(rank.fits for rank in ranks),
        worst_rank=min(ranks, key=lambda rank: (rank.fits, rank.headroom_bytes)).rank,
        method=Method.APPROXIMATE if Method.APPROXIMATE in methods else layout.method,
        notes=(*layout.notes, *notes),
    )


def _describe(rank: int, run: SimulatedRun, size: int, memory_bytes: int) -> RankMemory:
    limited = run.limit_to(memory_bytes)
    shown = limited or run
    peak = max(shown.peaks, key=lambda each: each.above_weights_bytes)
    return RankMemory(
        rank=rank,
        batch_size=size,
        figures=shown.figures.show(),
        activation_bytes=peak.activation_bytes,
        workspace_bytes=peak.workspace_bytes,
        communication_bytes=run.communication_bytes,
        fits=limited is not None,
        headroom_bytes=memory_bytes - shown.figures.total_device_bytes,
    )
