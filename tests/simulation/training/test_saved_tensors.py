"""The forward pass keeps what it keeps on a CPU for the backward pass."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from moetool.memory.training.freezing import trained_except
from moetool.memory.training.frozen_parts import FrozenPart
from moetool.simulation.training.training_run import TrainingOptions, run_training
from tests.families.tiny.configs import build_config
from tests.simulation.skeletons import build_family_skeleton

_BATCH_SIZE, _NUM_TOKENS = 2, 8


class Saved:
    """Collects the memory that a forward pass saves, except the model's own."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {
            tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())
        }
        self._kept: dict[int, torch.UntypedStorage] = {}
        self._is_first = True

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if self._is_first and storage._cdata not in self._own:
            self._kept[storage._cdata] = storage
        return tensor

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        self._is_first = False
        return tensor

    def count_sizes(self) -> Counter[int]:
        return Counter(storage.nbytes() for storage in self._kept.values())


@pytest.mark.parametrize(("family", "has_kernel"), [("olmoe", True), ("gpt_oss", False)])
def test_as_many_bytes_are_saved_as_on_a_cpu(family: str, has_kernel: bool) -> None:
    config = build_config(family)
    model = AutoModelForCausalLM.from_config(config).train()
    real = Saved(model)
    ids = torch.randint(3, 20, (_BATCH_SIZE, _NUM_TOKENS))
    with torch.autograd.graph.saved_tensors_hooks(real.pack, real.unpack):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    skeleton = build_family_skeleton(family)
    simulated = Saved(skeleton)
    with (
        trained_except(skeleton, FrozenPart.NONE),
        torch.autograd.graph.saved_tensors_hooks(simulated.pack, simulated.unpack),
    ):
        run_training(skeleton, TrainingOptions(_BATCH_SIZE, _NUM_TOKENS))
    expected = real.count_sizes()
    if has_kernel:
        # A GPU's kernel of attention saves its seed and its offset too.
        expected[8] += 2 * config.num_hidden_layers
    assert simulated.count_sizes() == expected
