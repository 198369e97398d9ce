"""fp8 with a scale for each block, in the modules that transformers loads it into."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from moetool.anatomy.skeleton.build import without_initial_values
from moetool.anatomy.skeleton.copies import copy_skeleton
from moetool.simulation.meta.replaced import replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MATRICES = ("gate_up_proj", "up_proj", "down_proj")


def convert_to_fp8(skeleton: PreTrainedModel, stated: Mapping[str, Any]) -> PreTrainedModel:
    """Return a copy of a skeleton with the modules that transformers loads fp8 into.

    They run under `offer_kernels_on_meta`.

    Args:
        skeleton: The model in full precision, on the meta device. It is left as it is.
        stated: The configuration's quantization settings.

    Raises:
        AssertionError, AttributeError, TypeError, ValueError: transformers can't convert the model,
            or can't use the settings.
    """
    import transformers
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    loaded: Any = copy_skeleton(skeleton)
    config_class: Any = transformers.FineGrainedFP8Config
    quantizer: Any = FineGrainedFP8HfQuantizer(
        config_class.from_dict(dict(stated)), pre_quantized=True
    )
    with _with_own_classes(), without_initial_values():
        quantizer._process_model_before_weight_loading(loaded)
    for plan in (loaded.tp_plan, loaded.ep_plan):
        quantizer.update_parallel_plan(loaded, plan)
    converted: PreTrainedModel = loaded.train(skeleton.training)
    return converted


@contextmanager
def _with_own_classes() -> Iterator[None]:
    """Have transformers change classes of experts that only this model has, and each only once.

    It wraps the constructor of its class again for every layer of every model. Each is slower than
    the one before, until Python refuses to call that many within one another.
    """
    from transformers.integrations import finegrained_fp8

    integration: Any = finegrained_fp8
    change = integration.use_experts_implementation
    changed: dict[Hashable, type] = {}

    def change_once(*, experts_class: type, **options: Any) -> type:
        key = tuple((name, id(value)) for name, value in options.items())
        if key not in changed:
            own = type(
                experts_class.__name__, (experts_class,), {"__module__": experts_class.__module__}
            )
            changed[key] = change(own, **options)
        return changed[key]

    with replaced(integration, {"use_experts_implementation": change_once}):
        yield


def find_undividable(converted: PreTrainedModel) -> str | None:
    """Return a matrix that transformers can't dequantize while it loads; None if there is none.

    `Fp8Dequantize` divides rows and columns by the numbers of scales, and raises an error if one
    leaves a rest: 576 rows in blocks of 128 have 5 scales.

    Args:
        converted: The result of `convert_to_fp8`.
    """
    for path, weight, scales in _list_matrices(converted):
        rows, columns = weight.shape[-2:]
        if rows % scales.shape[-2] or columns % scales.shape[-1]:
            return f"{path} ({rows:,} × {columns:,}, with {scales.shape[-2]:,} × {scales.shape[-1]:,} scales)"
    return None


def _list_matrices(
    converted: PreTrainedModel,
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield each matrix that is stored in blocks of fp8, with its path and its scales."""
    for path, module in converted.named_modules():
        own = dict(module.named_parameters(recurse=False))
        for name in ("weight", *_MATRICES):
            weight, scales = own.get(name), own.get(f"{name}_scale_inv")
            if weight is None or scales is None or scales.ndim < 2 or weight.element_size() > 1:
                continue
            if name == "gate_up_proj":
                # The files have the two halves apart, each with its own scales.
                half = weight[:, : weight.shape[1] // 2]
                yield f"{path}.{name}", half, scales[:, : -(-scales.shape[1] // 2)]
            else:
                yield f"{path}.{name}", weight, scales
