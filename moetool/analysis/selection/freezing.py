"""Parameters to train and rows of their gradients to keep, for experts that were chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moetool.analysis.selection.names import LayerNames
from moetool.trace.reading.layer_shapes import Place


@dataclass(frozen=True)
class FreezeList:
    """Parameters that fine-tuning of the chosen experts changes.

    Attributes:
        trainable: Patterns for `re.search` on names of parameters. The rest is frozen.
        rows: By name of parameter, the rows of the first dimension that belong to chosen experts,
            which are their ids. The gradient of the other rows is to be set to zero. Parameters
            that are trained whole are not among them.
        rows_per_expert: By name, for parameters with several rows for each expert: id `e` stands
            for rows `e * n` to `(e + 1) * n - 1`.
        target_parameters: As PEFT's LoraConfig takes them.
    """

    trainable: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]
    rows_per_expert: Mapping[str, int]
    target_parameters: tuple[str, ...]


def list_trainable(
    chosen: Mapping[Place, Sequence[int]],
    names: Mapping[Place, LayerNames],
    *,
    with_shared_experts: bool,
    with_other_modules: bool,
) -> FreezeList:
    """Return what to train of a model, given the chosen experts of each layer.

    Args:
        chosen: Experts by stack and layer; layers without any are frozen.
        names: Names of the same layers.
        with_shared_experts: Also train the shared experts.
        with_other_modules: Also train all parameters that are of no expert, routers among them.
    """
    trainable: list[str] = []
    rows: dict[str, tuple[int, ...]] = {}
    blocks: dict[str, int] = {}
    for place, experts in chosen.items():
        trained: list[str] = []
        for parameter in names[place].parameters:
            if parameter.expert is None and experts:
                trained.append(parameter.name)
                rows[parameter.name] = tuple(sorted(experts))
                if parameter.rows_per_expert > 1:
                    blocks[parameter.name] = parameter.rows_per_expert
            elif parameter.expert in experts:
                trained.append(parameter.name)
        trainable += [f"^{re.escape(name)}$" for name in trained]
        if with_shared_experts:
            trainable.append(rf"^{re.escape(names[place].block)}\.shared_experts?\.")
    targets = tuple(rows)
    if with_other_modules:
        paths = [re.escape(layer.experts) for layer in names.values()]
        paths += [rf"{re.escape(layer.block)}\.shared_experts?" for layer in names.values()]
        trainable.append(rf"^(?!({'|'.join(paths)})\.)")
    return FreezeList(tuple(trainable), rows, blocks, targets)
