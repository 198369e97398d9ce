"""Checkpoints of published geometries whose tensors are drawn when transformers reads them."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from moetool.anatomy.skeleton.build import build_skeleton
from moetool.catalogue.published import read_published_config


class DrawnTensor:
    """Stands for a tensor in a file: indexing draws it."""

    def __init__(self, shape: tuple[int, ...], device: str) -> None:
        self._shape, self._device = shape, device

    def get_dtype(self) -> str:
        """Return the dtype in the file, as safetensors names it."""
        return "BF16"

    def get_shape(self) -> list[int]:
        """Return the shape in the file."""
        return list(self._shape)

    def __getitem__(self, _: object) -> torch.Tensor:
        """Return the tensor, drawn anew."""
        tensor = torch.empty(self._shape, dtype=torch.bfloat16, device=self._device)
        if len(self._shape) < 2:
            return tensor.fill_(1.0)
        # So that the size of hidden states stays the same from layer to layer.
        return tensor.normal_(std=1 / math.sqrt(self._shape[-1]))


def cut_config(name: str, num_layers: int | None) -> PreTrainedConfig:
    """Return a published configuration with fewer layers."""
    raw: dict[str, Any] = dict(read_published_config(name))
    if num_layers is not None:
        raw["num_hidden_layers"] = num_layers
        for key in ("layer_types", "mlp_layer_types"):
            if isinstance(raw.get(key), list):
                raw[key] = raw[key][:num_layers]
    raw.pop("quantization_config", None)
    config: PreTrainedConfig = CONFIG_MAPPING[str(raw["model_type"])].from_dict(raw)
    return config


def draw_checkpoint(config: PreTrainedConfig, device: str) -> dict[str, Any]:
    """Return stand-ins for the tensors of a configuration's published files, by their names there.

    The files' own tensors are many more than the model's: one for each matrix of each expert.
    """
    skeleton = build_skeleton(config)
    tied = set(skeleton.all_tied_weights_keys)
    plain = {name: t for name, t in skeleton.state_dict().items() if name not in tied}
    convert: Any = revert_weight_conversion
    # A skeleton that no weights were loaded into knows no conversions: take the class's own.
    mapping: Any = get_model_conversion_mapping
    skeleton._weight_conversions = mapping(skeleton)
    return {
        name: DrawnTensor(tuple(tensor.shape), device)
        for name, tensor in convert(skeleton, plain).items()
    }


def load_drawn(
    config: PreTrainedConfig, *, device: str, quantization_config: Any = None
) -> PreTrainedModel:
    """Return a model with random weights, loaded as transformers loads published files."""
    loader: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model: PreTrainedModel
    model, report = loader.from_pretrained(
        None,
        config=config,
        state_dict=draw_checkpoint(config, device),
        dtype=torch.bfloat16,
        device_map={"": device},
        quantization_config=quantization_config,
        output_loading_info=True,
    )
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise RuntimeError(f"not loaded: {wrong[:3]}")
    model.eval()
    return model
