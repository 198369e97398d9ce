"""Sums of a trace's or a load table's assignments and weights, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.selection.sums.parts import (
    ALL,
    NUM_PARTS,
    NUM_SPLITS,
    PartSums,
    divide_prompts,
    sum_prompts,
)
from moetool.analysis.selection.sums.sample import DecisionSample
from moetool.analysis.statistics.halves import hash_prompts
from moetool.analysis.statistics.mixing import mix_bits
from moetool.errors import InputError, UsageError
from moetool.printable import printable
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.counts import ExpertCounts, LayerCounts
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.reader import DecisionReader
from moetool.trace.windows.window import LayerChoices

_DOMAINS_NAMED = 12


@dataclass(frozen=True)
class LayerSums:
    """One layer's sums over the prompts that were asked for.

    Attributes:
        shape: The layer as the trace describes it.
        sums: None if none of the prompts has a decision in the layer.
        decision_size: Assignments per decision, as the sums count decisions.
        sample: Some of the decisions; None if they were not asked for.
    """

    shape: RoutedLayer
    sums: PartSums | None
    decision_size: int
    sample: DecisionSample | None = None

    @property
    def num_ids(self) -> int:
        """Experts that decisions choose from: routed ones, then identity experts."""
        return self.shape.num_experts + self.shape.num_identity_experts


def sum_trace(
    reader: DecisionReader,
    *,
    domains: Collection[str] | None = None,
    keeps_sample: bool = False,
) -> list[LayerSums]:
    """Return the sums of each of a reader's layers.

    Args:
        reader: Grouped by domain, with the column `weight` if there is one.
        domains: Domains whose prompts count; None for all.
        keeps_sample: Also return some of the decisions.

    Raises:
        InputError: A row is not one of a trace.
        UsageError: There is no such domain.
    """
    total: dict[Place, PartSums] = {}
    shapes = {(layer.stack, layer.layer): layer for layer in reader.layers}
    samples: dict[Place, DecisionSample] = {}
    every_member = divide_prompts(reader.prompts)
    hashes = hash_prompts(reader.prompts)
    for window in reader:
        wanted = _find_wanted(window.group, reader.groups, domains)
        prompts, prompt = np.unique(window.prompt, return_inverse=True)  # (num_tokens,)
        members = every_member[:, prompts]
        # A number for each token that looks random, and depends on nothing else.
        key = mix_bits(hashes[window.prompt] + window.position.astype(np.uint64))
        for place, choices in window.layers.items():
            kept = _keep(choices, None if wanted is None else wanted[choices.token])
            found = _sum_window(kept, prompt[kept.token], shape=shapes[place], members=members)
            total[place] = total[place] + found if place in total else found
            if keeps_sample:
                sample = samples.setdefault(place, DecisionSample.empty(shapes[place].top_k))
                weights = 1.0 if kept.weights is None else kept.weights
                mine = prompt[kept.token]
                sample.add(
                    key[kept.token],
                    np.where(kept.experts >= 0, weights, np.nan),
                    1 / np.bincount(mine)[mine],
                )
    if domains is not None:
        _check_domains(domains, reader.groups, path=reader.facts.trace)
    return [
        LayerSums(
            layer,
            total.get((layer.stack, layer.layer)),
            layer.top_k,
            samples.get((layer.stack, layer.layer)),
        )
        for layer in reader.layers
    ]


def sum_loads(counts: ExpertCounts) -> list[LayerSums]:
    """Return the sums of a load table, which has neither weights nor prompts."""
    return [_take_loads(layer) for layer in counts.layers]


def _take_loads(layer: LayerCounts) -> LayerSums:
    per_expert = layer.assignments.sum(axis=0)
    decisions = np.zeros(NUM_PARTS, dtype=np.int64)
    assignments = np.zeros((NUM_PARTS, layer.num_experts), dtype=np.int64)
    sizes = np.zeros((NUM_PARTS, layer.top_k + 1), dtype=np.int64)
    sizes[ALL, -1] = max(1, per_expert.sum() // layer.top_k)
    # Each assignment is a decision here, because a table's decisions are rounded.
    decisions[ALL], assignments[ALL] = per_expert.sum(), per_expert
    sums = PartSums(
        decisions=decisions,
        sizes=sizes,
        prompts=np.zeros(NUM_PARTS, dtype=np.int64),
        assignments=assignments,
        weights=None,
        token_shares=np.zeros(assignments.shape),
        mean_weights=None,
    )
    shape = RoutedLayer(
        stack=layer.stack,
        layer=layer.layer,
        module="",
        router=None,
        num_experts=layer.num_experts,
        num_identity_experts=0,
        top_k=layer.top_k,
    )
    return LayerSums(shape, sums if per_expert.any() else None, 1)


def _find_wanted(
    group: NDArray[np.int64], groups: list[str], domains: Collection[str] | None
) -> NDArray[np.bool_] | None:
    """Return which tokens are of the domains; None for all.

    Returns:
        # (num_tokens,)
    """
    if domains is None:
        return None
    return np.array([name in domains for name in groups], dtype=bool)[group]


def _keep(choices: LayerChoices, wanted: NDArray[np.bool_] | None) -> LayerChoices:
    if wanted is None:
        return choices
    weights = choices.weights
    return LayerChoices(
        token=choices.token[wanted],
        experts=choices.experts[wanted],
        weights=None if weights is None else weights[wanted],
    )


def _sum_window(
    choices: LayerChoices,
    prompt: NDArray[np.int64],
    *,
    shape: RoutedLayer,
    members: NDArray[np.bool_],
) -> PartSums:
    """Return the sums of one layer's decisions in a window of whole prompts.

    Args:
        choices: The decisions.
        prompt: Index of each decision's prompt. # (num_decisions,)
        shape: The layer.
        members: See `sum_prompts`. # (num_parts, num_prompts)
    """
    size = (members.shape[1], shape.num_experts + shape.num_identity_experts)
    ran = choices.experts >= 0  # (num_decisions, top_k)
    cell = (prompt[:, None] * size[1] + choices.experts)[ran]
    num_cells = size[0] * size[1]
    mass: NDArray[np.float64] | None = None
    if choices.weights is not None:
        weights = choices.weights[ran].astype(np.float64)
        mass = np.bincount(cell, weights=weights, minlength=num_cells).reshape(size).astype(float)
    # Only rows that were not checked can have more experts than top-k.
    num_ran = np.minimum(ran.sum(axis=1), shape.top_k)
    width = shape.top_k + 1
    return sum_prompts(
        np.bincount(cell, minlength=num_cells).reshape(size),
        mass,
        np.bincount(prompt * width + num_ran, minlength=size[0] * width).reshape(-1, width),
        members=members,
        top_k=shape.top_k,
    )


def _check_domains(domains: Collection[str], groups: list[str], *, path: str | None) -> None:
    missing = sorted(set(domains) - set(groups))
    if not missing:
        return
    known = sorted(groups)
    shown = ", ".join(printable(name, max_length=40) for name in known[:_DOMAINS_NAMED])
    more = f" and {len(known) - _DOMAINS_NAMED} more" if len(known) > _DOMAINS_NAMED else ""
    raise UsageError(
        f"{_name(path)} has no domain '{printable(missing[0], max_length=60)}'.",
        hint=f"Its domains are {shown}{more}.",
    )


def check_weights(layers: Collection[LayerSums], *, path: str | None) -> None:
    """Check that there are weights for a gate score.

    Raises:
        InputError: There are none.
    """
    for layer in layers:
        sums = layer.sums
        if sums is not None and (sums.weights is None or not np.isfinite(sums.weights).all()):
            raise InputError(
                f"{_name(path)} has no weights in layer "
                f"{layer.shape.layer}, which a gate score is made of.",
                hint="Choose --by token, or trace with a tool that records weights.",
            )


def list_halves(layer: LayerSums) -> Iterator[tuple[int, int]]:
    """Yield the two parts of each split in which both have decisions of a layer."""
    for split in range(NUM_SPLITS):
        first, second = 1 + 2 * split, 2 + 2 * split
        if layer.sums is not None and layer.sums.decisions[[first, second]].all():
            yield first, second


def _name(path: str | None) -> str:
    return "The frame" if path is None else f"'{printable(path)}'"
