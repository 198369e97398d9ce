"""Check that a family's quantized checkpoint loads as if it were quantized while loading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from moetool.checkpoint.files import Checkpoint
from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.quantizing.choice import QuantizationChoice
from moetool.quantizing.saving.save import save_quantized


def check_saving(
    loaded: PreTrainedModel,
    skeleton: PreTrainedModel,
    source: Path,
    folder: Path,
    choice: QuantizationChoice,
) -> None:
    """Compare the tensors of a reloaded model with those of one quantized while loading.

    Args:
        loaded: The model that was quantized while loading.
        skeleton: A plain model of its class.
        source: The folder of the checkpoint.
        folder: A folder for the quantized checkpoint.
        choice: The format of both.
    """
    folder.mkdir()
    headers = read_local_headers(source)
    assert headers is not None
    checkpoint = Checkpoint(str(source), source, None)
    config = AutoConfig.from_pretrained(source)
    save_quantized(checkpoint, config, skeleton, headers, folder, choice=choice)
    loader: Any = type(skeleton)
    reloaded, report = loader.from_pretrained(folder, dtype=loaded.dtype, output_loading_info=True)
    assert not any(report.values()), report
    compare_tensors(reloaded.state_dict(), loaded.state_dict())


def compare_tensors(
    first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]
) -> None:
    """Compare all tensors bit by bit."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype is second[name].dtype, name
        assert torch.equal(tensor, second[name]), name
