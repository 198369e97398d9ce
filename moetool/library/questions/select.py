"""The selection of experts from a trace or a load table, wherever its rows are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.analysis.selection.choices import Average, Score
from moetool.analysis.selection.measure import select_from_sums
from moetool.analysis.selection.names import LayerNames
from moetool.analysis.selection.request import SelectionRequest
from moetool.analysis.selection.result import Selection
from moetool.analysis.selection.sums.reading import check_weights, sum_loads, sum_trace
from moetool.choices import choose, take_count, take_flag, take_number, take_path
from moetool.errors import UsageError
from moetool.library.opening import open_any, take_layers, take_shape
from moetool.library.trace import Trace
from moetool.trace.loads.table import is_load_table, open_loads
from moetool.trace.metadata_fields import MOST_IDS
from moetool.trace.reading.layer_shapes import Place, check_layers
from moetool.trace.windows.reader import DecisionReader

if TYPE_CHECKING:
    import pandas as pd


def select_experts(
    trace: pd.DataFrame | Trace | str | PathLike[str],
    *,
    by: Score | str = Score.TOKEN,
    top_p: float = 0.2,
    average: Average | str = Average.MICRO,
    domain: str | Collection[str] | None = None,
    layers: Collection[int] | None = None,
    shared_experts: bool = False,
    non_expert_modules: bool = False,
    freeze_list: bool = False,
    model: str | PathLike[str] | None = None,
    prune_ratio: float | None = None,
    groups: int | None = None,
    saliency: str | PathLike[str] | Mapping[int, Sequence[float]] | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> Selection:
    """Return the experts to fine-tune, or to keep, as `moetool select` does.

    Args:
        trace: A DataFrame with the columns of a trace, a `Trace`, the path of a trace, or the path
            of a load table (token scores only).
        by: Score: `token`, `gate`, or for pruning `saliency`.
        top_p: Cumulative score at which the selection of a layer ends.
        average: `micro` over tokens, as in ESFT's published scores, or `macro` over prompts, as in
            its paper.
        domain: A domain, or several, whose prompts count; None for all.
        layers: Layer numbers to read; None for all.
        shared_experts: Also train the shared experts.
        non_expert_modules: Also train all modules that hold no experts.
        freeze_list: Also list the parameters to train, and the rows of fused ones.
        model: A folder, Hub id or catalogue name, for the names of its parameters and the groups
            of its routers. By default, names are those of the trace's metadata.
        prune_ratio: Share of each layer's experts to drop; None to drop none.
        groups: Groups of experts that lose the same number; None for those of the model.
        saliency: REAP's observer file, or each layer's saliencies, for the score `saliency`.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has.

    Raises:
        InputError: There is no trace, it fails a check, has no weights for a gate score, or the
            model or the saliency is of another model.
        UsageError: An argument is out of range, or there is no such domain or layer.
    """
    request = _take_request(
        by=by,
        top_p=top_p,
        average=average,
        domain=domain,
        shared_experts=shared_experts,
        non_expert_modules=non_expert_modules,
        freeze_list=freeze_list,
        prune_ratio=prune_ratio,
        groups=groups,
        saliency=saliency,
    )
    validate = take_flag(validate, name="validate")
    numbers, shape = take_layers(layers), take_shape(num_experts=num_experts, top_k=top_k)
    names = None if model is None else _read_names(model)
    if not _is_table(trace) and is_load_table(path := take_path(trace, name="trace")):
        return _select_from_loads(path, request, layers=numbers, shape=shape, names=names)
    source = open_any(trace)
    reader = DecisionReader(
        source,
        layers=numbers,
        num_experts=shape[0],
        top_k=shape[1],
        columns=("weight",),
        is_checked=validate,
    )
    sums = sum_trace(
        reader,
        domains=request.domains,
        keeps_sample=request.selects_by is Score.GATE or request.average is Average.MACRO,
    )
    if Score.GATE in (request.by, request.selects_by):
        check_weights(sums, path=reader.facts.trace)
    return select_from_sums(
        sums,
        request,
        facts=reader.facts,
        known=() if source.metadata is None else source.metadata.layers,
        names=names,
        notes=reader.notes,
    )


def _is_table(trace: object) -> bool:
    import pandas as pd

    return isinstance(trace, pd.DataFrame | Trace)


def _take_request(
    *,
    by: object,
    top_p: object,
    average: object,
    domain: str | Collection[str] | None,
    shared_experts: object,
    non_expert_modules: object,
    freeze_list: object,
    prune_ratio: object,
    groups: object,
    saliency: str | PathLike[str] | Mapping[int, Sequence[float]] | None,
) -> SelectionRequest:
    score = choose(by, Score, name="score")
    ratio = _take_share(prune_ratio, name="share of experts to drop")
    share = _take_share(top_p, name="cumulative score", is_whole_allowed=True)
    if share is None:
        raise UsageError("The cumulative score can't be None.", hint="Give a number from 0 to 1.")
    if ratio is None and (groups is not None or saliency is not None or score is Score.SALIENCY):
        raise UsageError(
            "Groups and saliency decide which experts are dropped, and none are.",
            hint="Add a ratio of experts to drop: --prune-ratio 0.25.",
        )
    if (score is Score.SALIENCY) != (saliency is not None):
        raise UsageError(
            "A score by saliency and a file of saliencies need each other.",
            hint="Give both, --by saliency and --saliency FILE, or neither.",
        )
    if isinstance(saliency, str | PathLike):
        from moetool.interchange.reap import read_saliency

        saliency = read_saliency(take_path(saliency, name="saliency"))
    return SelectionRequest(
        by=score,
        top_p=share,
        average=choose(average, Average, name="average"),
        domains=_take_domains(domain),
        with_shared_experts=take_flag(shared_experts, name="shared_experts"),
        with_other_modules=take_flag(non_expert_modules, name="non_expert_modules"),
        prune_ratio=ratio,
        num_groups=take_count(
            groups, name="number of groups", smallest=1, largest=MOST_IDS, is_optional=True
        ),
        saliency=saliency,
        has_freeze_list=take_flag(freeze_list, name="freeze_list"),
    )


def _take_share(value: object, *, name: str, is_whole_allowed: bool = False) -> float | None:
    share = take_number(value, name=name, smallest=0, largest=1)
    if share is not None and (share == 0 or (share == 1 and not is_whole_allowed)):
        raise UsageError(
            f"The {name} can't be {share:g}.",
            hint="Give a number above 0 and below 1."
            if not is_whole_allowed
            else "Give a number above 0, up to 1.",
        )
    return share


def _take_domains(domain: str | Collection[str] | None) -> tuple[str, ...] | None:
    if domain is None:
        return None
    names = (domain,) if isinstance(domain, str) else tuple(domain)
    if not names or not all(isinstance(name, str) for name in names):
        raise UsageError(
            "Domains are given by their names.", hint="Give a name, or a list of names."
        )
    return tuple(dict.fromkeys(names))


def _read_names(model: str | PathLike[str]) -> dict[Place, LayerNames]:
    from moetool.library.expert_names import read_expert_names

    return read_expert_names(model)


def _select_from_loads(
    path: Path,
    request: SelectionRequest,
    *,
    layers: frozenset[int] | None,
    shape: tuple[int | None, int | None],
    names: Mapping[Place, LayerNames] | None,
) -> Selection:
    loads = open_loads(path)
    if request.by is Score.GATE:
        raise UsageError(
            f"The load table '{path}' has counts alone, and a gate score is made of weights.",
            hint="Choose --by token.",
        )
    if request.domains is not None or request.average is Average.MACRO:
        raise UsageError(
            f"The load table '{path}' has no prompts, so they have neither domains nor means.",
            hint="Leave out --domain and --average, or give a trace.",
        )
    counts = loads.to_counts(num_experts=shape[0], top_k=shape[1], needs_top_k=False)
    sums = sum_loads(counts)
    known = [layer.shape for layer in sums]
    if layers is not None:
        check_layers(path, (layer.layer for layer in known), layers)
        sums = [layer for layer in sums if layer.shape.layer in layers]
    return select_from_sums(
        sums,
        request,
        facts=loads.describe(counts.layers),
        known=known,
        names=names,
        notes=counts.notes,
    )
