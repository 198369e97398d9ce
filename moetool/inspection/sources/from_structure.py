"""The inspection of any module in memory, by its structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from moetool.anatomy.components import TOWERS
from moetool.anatomy.config_fields import find_hidden_size
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.routing_signs import is_foreign
from moetool.anatomy.routing.top_k import find_top_k
from moetool.anatomy.skeleton.description import (
    Anatomy,
    LayerAnatomy,
    count_shared_experts,
)
from moetool.anatomy.skeleton.placement import find_known_model
from moetool.anatomy.structure.chosen import Choice
from moetool.anatomy.structure.module_structure import ModuleStructure
from moetool.anatomy.structure.table import count_structure
from moetool.choices import take_count
from moetool.errors import UsageError
from moetool.inspection.result import Inspection, Source
from moetool.inspection.rows import pair_rows
from moetool.inspection.sources.recorded_choices import Recording, read_choices
from moetool.inspection.sources.structure_notes import note_structure
from moetool.inspection.summary import merge_layers, summarize
from moetool.wording import join_words

if TYPE_CHECKING:
    import pandas as pd

_MOST_PATHS = 4


def inspect_structure(
    module: nn.Module,
    *,
    copy: Callable[[nn.Module], nn.Module],
    top_k: int | Mapping[str, int] | None = None,
    recording: Recording | pd.DataFrame | None = None,
) -> Inspection:
    """Return the inspection of any module, which is left as it is.

    Args:
        module: Any module.
        copy: Returns a copy of it on the meta device, on which blocks of transformers are run.
        top_k: Experts that a token chooses, of all routed layers or by the path of their experts or
            blocks.
        recording: A recording of the module.

    Raises:
        UsageError: `top_k` or the recording does not fit the module.
    """
    name = type(module).__name__
    structure = ModuleStructure.of(module)
    choices: Mapping[MoeLayer, Choice]
    if recording is not None:
        choices = read_choices(recording, structure.layers, name=name)
    else:
        choices = {
            **_watch_known(structure, copy),
            **({} if top_k is None else _take_top_k(top_k, structure, name=name)),
        }
    table = count_structure(structure, choices)
    known = find_known_model(module)
    layers, experts = structure.run_layers, structure.experts
    num_shared: int | None = None
    if known is not None:
        num_shared = count_shared_experts(known.config, table)
    elif experts.is_dense:
        num_shared = 0
    dtypes = dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in module.parameters())
    places = list(
        dict.fromkeys(
            (row.stack, row.layer)
            for row in table.rows
            if row.layer is not None and row.component not in TOWERS
        )
    )
    # Layers within the experts of another one are parts of it.
    outermost = [layer for each in structure.expert_sets for layer in each.layers]
    routed = {(layer.stack.partition(".")[0], layer.layer) for layer in outermost}
    return Inspection(
        model=getattr(getattr(known, "config", None), "name_or_path", None) or name,
        source=Source.MODULES,
        model_type=known.config.model_type if known else None,
        num_layers=len(places),
        num_moe_layers=len(routed) if experts.are_all_read else None,
        num_experts=merge_layers([layer.num_experts for layer in layers], experts),
        top_k=merge_layers([_find_exact(layer, choices) for layer in layers], experts),
        num_shared_experts=num_shared,
        expert_params=merge_layers([_size_one(structure, layer) for layer in layers], experts)
        or None,
        anatomy=Anatomy(
            model_class=name,
            num_layers=len(places),
            routed_layers=tuple(
                LayerAnatomy(
                    stack=layer.stack,
                    layer=layer.layer,
                    num_experts=layer.num_experts,
                    num_identity_experts=layer.num_identity_experts,
                    top_k=_find_exact(layer, choices),
                    expert_width=None,
                    style=None,
                )
                for layer in layers
            ),
            dense_layers={
                stack: tuple(n for s, n in places if s == stack and (s, n) not in routed)
                for stack in dict.fromkeys(stack for stack, _ in places)
            },
            num_shared_experts=num_shared,
            mixers=(),
            context_length=None,
            vocab_size=None,
            is_encoder_decoder=False,
        ),
        dtype=" + ".join(dtypes) or None,
        parameters=summarize(table),
        rows=tuple(pair_rows(table, None)),
        notes=tuple(
            note_structure(
                structure,
                choices,
                table,
                is_recorded=recording is not None,
                is_given=top_k is not None,
            )
        ),
    )


def _watch_known(
    structure: ModuleStructure, copy: Callable[[nn.Module], nn.Module]
) -> dict[MoeLayer, Choice]:
    """Return what blocks of transformers choose, whose code does what their attributes say."""
    module = structure.module
    known = find_known_model(module)
    layers = [
        layer
        for layer in structure.layers
        if not is_foreign(module.get_submodule(layer.block_path))
    ]
    if not layers or known is None:
        return {}
    try:
        copied = copy(module)
    except Exception:  # noqa: BLE001 - then the numbers are reported as unknown
        return {}
    hidden_size = find_hidden_size(known.config) or 0
    numbers = {layer: find_top_k(copied, layer, hidden_size=hidden_size) for layer in layers}
    return {layer: Choice(k, k) for layer, k in numbers.items() if k is not None}


def _take_top_k(
    top_k: int | Mapping[str, int], structure: ModuleStructure, *, name: str
) -> dict[MoeLayer, Choice]:
    if not structure.layers:
        raise UsageError(
            f"top_k has no effect: no routed layer was found in this {name}.",
            hint="Leave out top_k.",
        )
    if not isinstance(top_k, Mapping):
        return {layer: _make_choice(top_k, layer) for layer in structure.layers}
    choices: dict[MoeLayer, Choice] = {}
    for path, number in top_k.items():
        named = [
            layer for layer in structure.layers if path in (layer.experts_path, layer.block_path)
        ]
        if not named:
            paths = [repr(layer.experts_path) for layer in structure.layers]
            more = ["…"] if len(paths) > _MOST_PATHS else []
            raise UsageError(
                f"No routed layer of this {name} is at {path!r}.",
                hint=f"Name {join_words(paths[:_MOST_PATHS] + more, last='or')}, or their blocks.",
            )
        choices |= {layer: _make_choice(number, layer) for layer in named}
    return choices


def _make_choice(top_k: object, layer: MoeLayer) -> Choice:
    number = take_count(
        top_k,
        name=f"top_k of {layer.experts_path}",
        smallest=1,
        largest=layer.num_experts + layer.num_identity_experts,
    )
    return Choice(number, number)


def _find_exact(layer: MoeLayer, choices: Mapping[MoeLayer, Choice]) -> int | None:
    return choices[layer].exact if layer in choices else None


def _size_one(structure: ModuleStructure, layer: MoeLayer) -> int | None:
    """Return the parameters of one expert; None if experts differ."""
    sizes = set(structure.parameters[layer].sizes[: layer.num_experts])
    return sizes.pop() if len(sizes) == 1 else None
