"""The layers that transformers never splits between GPUs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from moetool.anatomy.components import TOWERS
from moetool.anatomy.routing.walk import walk_modules, walk_parameters
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton


def find_decoder_layers(skeleton: RoutedSkeleton) -> Mapping[str, nn.Module]:
    """Return the language model's layers by path, which are those it lists in `_no_split_modules`.

    Layers of towers, layers within layers, and an encoder's layers next to a decoder are left out.
    Empty if the model lists none.
    """
    names = set(skeleton.model._no_split_modules or ())
    found: dict[str, nn.Module] = {}
    stacks: dict[str, str] = {}
    # What is within a layer isn't walked: by the time it would be, the layer is among those found.
    for path, module in walk_modules(skeleton.model, closed=found.keys()):
        if type(module).__name__ not in names:
            continue
        inside = next((name for name, _ in walk_parameters(module, path=path)), None)
        place = skeleton.placement.place(inside) if inside else None
        if place is not None and place.component not in TOWERS:
            found[path] = module
            stacks[path] = place.stack
    kept = "decoder" if "decoder" in stacks.values() else "encoder"
    return {path: module for path, module in found.items() if stacks[path] == kept}
