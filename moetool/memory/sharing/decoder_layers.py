"""The layers that transformers never splits between GPUs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.components import TOWERS
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton


def find_decoder_layers(skeleton: PreTrainedModel) -> Mapping[str, nn.Module]:
    """Return the language model's layers by path, which are those it lists in `_no_split_modules`.

    Layers of towers, layers within layers, and an encoder's layers next to a decoder are left out.
    Empty if the model lists none.
    """
    names = set(skeleton._no_split_modules or ())
    placement = RoutedSkeleton.of(skeleton).placement
    found: dict[str, nn.Module] = {}
    stacks: dict[str, str] = {}
    for path, module in skeleton.named_modules():
        if type(module).__name__ not in names or any(path.startswith(f"{p}.") for p in found):
            continue
        inside = next((name for name, _ in module.named_parameters()), None)
        place = placement.place(f"{path}.{inside}") if inside else None
        if place is not None and place.component not in TOWERS:
            found[path] = module
            stacks[path] = place.stack
    kept = "decoder" if "decoder" in stacks.values() else "encoder"
    return {path: module for path, module in found.items() if stacks[path] == kept}
