"""Placement of experts on GPUs, from a trace wherever its rows are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetool.analysis.placement.loads import measure_load_placement
from moetool.analysis.placement.measure import PlacementOptions, measure_placements
from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.methods.coactivation import BALANCE_WEIGHT
from moetool.analysis.placement.result import COACTIVATION, EPLB, METHODS, Placement
from moetool.analysis.placement.summary import SentBytes
from moetool.choices import (
    choose,
    choose_word,
    take_count,
    take_flag,
    take_number,
    take_path,
    take_text,
)
from moetool.interchange.exports.files import FORMATS, Engine, check_suffix, list_remarks
from moetool.interchange.exports.slots import make_slot_plan, unknown_hidden_layers
from moetool.library.opening import open_any, take_layers, take_shape
from moetool.library.sizes.model_sizes import ModelSizes, find_model_sizes, read_model_sizes
from moetool.output.targets import check_target_file, saying_what_failed, write_file
from moetool.trace.loads.table import LoadTable, is_load_table, open_loads
from moetool.trace.metadata_fields import MOST_IDS

if TYPE_CHECKING:
    from moetool.library.opening import GivenTrace

_MOST_GPUS = 100_000
_MOST_TOKENS = 10_000_000
_MOST_LAYERS = 10_000
_LARGEST_HIDDEN_SIZE = 10_000_000
_NUM_SEEDS = 1 << 64
_HALF_PRECISION_BYTES = 2


def place_experts(
    trace: GivenTrace,
    *,
    num_gpus: int,
    num_nodes: int = 1,
    num_redundant_experts: int = 0,
    num_groups: int | None = None,
    tokens_per_batch: int = 512,
    balance_weight: float = BALANCE_WEIGHT,
    seed: int = 0,
    by: str = "domain",
    layers: Collection[int] | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
    model: str | PathLike[str] | None = None,
    hidden_size: int | None = None,
    advises_vllm: bool = False,
) -> Placement:
    """Return where to place the experts, and what that is worth, as `moetool place` does.

    Placements are fitted on half of the prompts and scored on the other half; those that the result
    holds are fitted on all prompts. A single prompt is both fitted and scored on.

    Args:
        trace: A DataFrame, a `Trace`, or the path of a trace or load table.
        num_gpus: GPUs that share the experts of every layer evenly.
        num_nodes: Nodes that share the GPUs evenly.
        num_redundant_experts: Slots of each layer for replicas of experts.
        num_groups: Groups that the router limits its choice to; by default the configuration's.
        tokens_per_batch: Consecutive tokens of a batch.
        balance_weight: Weight of balance against traffic, in placement by co-activation.
        seed: Decides which prompts are held out.
        by: Column whose values are spread over both halves.
        layers: Layer numbers to read; None for all.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has.
        model: The traced model, for its sizes; by default the one that the trace names, if its
            configuration is at hand.
        hidden_size: Values of a token that are sent to a GPU, for a model without configuration.
        advises_vllm: Also find settings of vLLM, which loads no placement.

    Raises:
        InputError: There is no trace, or it fails a check.
        UsageError: An argument is out of range, or the experts can't be shared out evenly.
    """
    gpus = take_count(num_gpus, name="number of GPUs", smallest=2, largest=_MOST_GPUS)
    nodes = take_count(num_nodes, name="number of nodes", smallest=1, largest=_MOST_GPUS)
    redundant = take_count(
        num_redundant_experts, name="number of redundant experts", smallest=0, largest=MOST_IDS
    )
    groups = take_count(
        num_groups, name="number of groups", smallest=1, largest=MOST_IDS, is_optional=True
    )
    size = take_count(
        hidden_size, name="hidden size", smallest=1, largest=_LARGEST_HIDDEN_SIZE, is_optional=True
    )
    cluster = Cluster(gpus, nodes, redundant, groups or 1)
    num_experts, top_k = take_shape(num_experts=num_experts, top_k=top_k)
    source = _open_any(trace, by=take_text(by, name="column to group by"))
    named = source.metadata.model if source.metadata is not None else None
    sizes = read_model_sizes(model) if model is not None else find_model_sizes(named)
    if groups is None:
        cluster = replace(cluster, num_groups=sizes.num_groups or 1)
    weight = take_number(balance_weight, name="balance weight", smallest=0, largest=1e6)
    options = PlacementOptions(
        by=by,
        layers=take_layers(layers),
        num_experts=num_experts,
        top_k=top_k,
        is_checked=take_flag(validate, name="validate"),
        tokens_per_batch=take_count(
            tokens_per_batch, name="number of tokens per batch", smallest=1, largest=_MOST_TOKENS
        ),
        seed=take_count(seed, name="seed", smallest=0, largest=_NUM_SEEDS - 1),
        balance_weight=BALANCE_WEIGHT if weight is None else weight,
        sent=_find_sent_bytes(sizes, hidden_size=size),
        advises_vllm=take_flag(advises_vllm, name="advises_vllm"),
    )
    return _measure(source, [cluster], options)[0]


def place_on_each(
    trace: GivenTrace,
    nums_gpus: Sequence[int],
    *,
    by: str,
    layers: Collection[int] | None,
    num_experts: int | None,
    top_k: int | None,
    validate: bool,
) -> list[Placement]:
    """Return what `place_experts` does for each of several numbers of GPUs, reading the trace once.

    Raises:
        InputError: There is no trace, or it fails a check.
        UsageError: An argument is out of range, or the experts can't be shared out evenly.
    """
    source = _open_any(trace, by=by)
    sizes = find_model_sizes(source.metadata.model if source.metadata is not None else None)
    options = PlacementOptions(
        by=by,
        layers=take_layers(layers),
        num_experts=num_experts,
        top_k=top_k,
        is_checked=validate,
        sent=_find_sent_bytes(sizes, hidden_size=None),
    )
    clusters = [Cluster(gpus, 1, 0, sizes.num_groups or 1) for gpus in nums_gpus]
    return _measure(source, clusters, options)


def _measure(
    source: Any, clusters: Sequence[Cluster], options: PlacementOptions
) -> list[Placement]:
    if isinstance(source, LoadTable):
        return [measure_load_placement(source, cluster, options) for cluster in clusters]
    return measure_placements(source, clusters, options)


def export_placement(
    placement: Placement,
    engine: str,
    path: str | PathLike[str],
    *,
    method: str | None = None,
    model: str | PathLike[str] | None = None,
    num_hidden_layers: int | None = None,
    overwrite: bool = False,
) -> str:
    """Write a placement as an engine loads it, and return the options of the engine that use it.

    Args:
        placement: From `place_experts`, of all layers.
        engine: `sglang`, `tensorrt-llm`, `vllm-ascend`, `eplb` or `ktransformers`.
        path: File to write.
        method: `contiguous`, `eplb` or `coactivation`; by default the last, or `eplb` for a load
            table.
        model: The model, for its number of hidden layers; by default the one that the trace names.
        num_hidden_layers: Layers of the model, dense ones included.
        overwrite: Replace an existing file.

    Raises:
        UsageError: The file exists or can't be written, or the engine can't load such a placement.
    """
    return write_export(
        placement,
        engine,
        path,
        method=method,
        num_hidden_layers=_find_hidden_layers(
            placement.trace.model, model=model, stated=num_hidden_layers
        ),
        overwrite=overwrite,
    ).options


@dataclass(frozen=True)
class Export:
    """A placement that was written for an engine.

    Attributes:
        options: Of the engine; they use the file.
        remarks: What a reader should know, as sentences.
    """

    options: str
    remarks: tuple[str, ...]


def write_export(
    placement: Placement,
    engine: str,
    path: str | PathLike[str],
    *,
    method: str | None,
    num_hidden_layers: int | None,
    overwrite: bool,
) -> Export:
    """Write a placement as an engine loads it. Arguments are those of `export_placement`.

    Raises:
        UsageError: The file exists or can't be written, or the engine can't load such a placement.
    """
    overwrite = take_flag(overwrite, name="overwrite")
    chosen, target = _check_target(engine, path, overwrite=overwrite)
    default = EPLB if placement.methods[COACTIVATION] is None else COACTIVATION
    word = choose_word(method, METHODS, name="method") if method is not None else default
    plan = make_slot_plan(
        placement,
        method=next(each for each in METHODS if each == word),
        num_hidden_layers=num_hidden_layers,
    )
    content = FORMATS[chosen].render(plan)
    with saying_what_failed(target):
        write_file(content, target, replace_existing=overwrite)
    return Export(FORMATS[chosen].explain(plan, str(target)), list_remarks(chosen, plan))


def prepare_export(
    trace: Path,
    engine: str,
    path: Path,
    *,
    model: str | PathLike[str] | None,
    num_hidden_layers: int | None,
    overwrite: bool,
) -> int | None:
    """Return the number of hidden layers, after checking an export before any work is done for it.

    Args:
        trace: Trace or load table.
        engine: As in `export_placement`, like the arguments that follow.
        path: File to write.
        model: Named by the user; None to take the one that the trace names.
        num_hidden_layers: Stated by the user; None to look it up.
        overwrite: Replace an existing file.

    Raises:
        InputError: There is no such trace or model.
        UsageError: There is no such engine, the file has a wrong suffix, exists or can't be written,
            or the number of layers is needed and unknown.
    """
    chosen, _ = _check_target(engine, path, overwrite=overwrite)
    source = _open_any(trace, by="domain")
    named = None if source.metadata is None else source.metadata.model
    number = _find_hidden_layers(named, model=model, stated=num_hidden_layers)
    if FORMATS[chosen].has_every_layer and number is None:
        raise unknown_hidden_layers(chosen)
    return number


def _find_hidden_layers(
    named: str | None, *, model: str | PathLike[str] | None, stated: object
) -> int | None:
    """Return how many layers a model has: as stated, or as its configuration says.

    Args:
        named: The model that the trace names.
        model: The model that the user names.
        stated: The number that the user states.
    """
    number = take_count(
        stated,
        name="number of hidden layers",
        smallest=1,
        largest=_MOST_LAYERS,
        is_optional=True,
    )
    if number is not None:
        return number
    return (read_model_sizes(model) if model else find_model_sizes(named)).num_hidden_layers


def _check_target(
    engine: str, path: str | PathLike[str], *, overwrite: bool
) -> tuple[Engine, Path]:
    chosen = choose(engine, Engine, name="engine")
    target = take_path(path, name="file")
    check_suffix(chosen, target)
    check_target_file(target, replace_existing=overwrite)
    return chosen, target


def _open_any(trace: Any, *, by: str) -> Any:
    if isinstance(trace, str | PathLike):
        path = Path(take_path(trace, name="trace"))
        if is_load_table(path):
            return open_loads(path)
    return open_any(trace, by=by)


def _find_sent_bytes(sizes: ModelSizes, *, hidden_size: int | None) -> SentBytes:
    size = hidden_size or sizes.hidden_size
    if size is None:
        return SentBytes(
            None,
            None,
            "All-to-all bytes are unknown: the trace doesn't name a model whose hidden size is "
            "known offline; give --model or --hidden-size.",
        )
    if sizes.bytes_per_value is None:
        reason = f"A value is taken to have {_HALF_PRECISION_BYTES} bytes, as in bfloat16."
        return SentBytes(size, _HALF_PRECISION_BYTES, reason)
    return SentBytes(size, sizes.bytes_per_value)
