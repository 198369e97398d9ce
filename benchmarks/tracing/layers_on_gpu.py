"""Compare what is recorded of small routed layers on a GPU with what is recorded on the CPU.

    python -m benchmarks.tracing.layers_on_gpu

The layers are those of the tests, in float32, with the same weights and inputs on both. Each is called
twice, because a later call is proven in another way, and runs twice on the GPU: as usual, and with the
GPU as torch's default device.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from moetool import RoutingRecorder
from moetool.errors import MoetoolError
from moetool.tracing.recording.calls import RecordedLayer
from tests.tracing.own_layers.modules.layers import LAYERS, WIDTH
from tests.tracing.recording.operations.blocks import EXACT, HIDDEN_SIZE

# Draws its numbers on its device, where they are others.
NOISY = "noise"
NUM_SEQUENCES, NUM_TOKENS = 4, 300
# Products on a GPU and on the CPU add up in another order.
TOLERANCE = 1e-4


def main() -> None:
    """Print a line for each layer, and fail if one of them differs."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    num_other = 0
    for name, layer, width in iter_layers():
        torch.manual_seed(1)
        hidden = torch.randn(NUM_SEQUENCES, NUM_TOKENS, width)
        on_cpu = record(layer, hidden)
        for is_default in (False, True):
            with default_device("cuda" if is_default else "cpu"):
                found = record(copy.deepcopy(layer).cuda(), hidden.cuda())
            difference = compare(on_cpu, found)
            num_other += difference is not None and "by itself" not in difference
            print(f"{name}, GPU by default {is_default}: {difference or 'the same'}", flush=True)
    print(f"{num_other} differ")
    sys.exit(1 if num_other else 0)


def iter_layers() -> Iterator[tuple[str, nn.Module, int]]:
    """Yield each layer with its name and its width."""
    for layers, width in ((LAYERS, WIDTH), (EXACT, HIDDEN_SIZE)):
        for name, make in layers.items():
            if name == NOISY:
                continue
            torch.manual_seed(0)
            yield name, make().eval(), width


def record(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor | str:
    """Return tables of two calls, or the refusal."""
    torch.manual_seed(2)
    try:
        with torch.no_grad():
            layer(hidden.clone())
    except RuntimeError as error:
        # Some layers make tensors on the CPU, or on the default device.
        return f"doesn't run by itself: {error}"
    torch.manual_seed(2)
    try:
        with torch.no_grad(), RoutingRecorder(layer) as recorder:
            layer(hidden.clone())
            layer(hidden.flip(1).clone())
    except MoetoolError as error:
        return error.message
    return torch.cat([as_table(call.layers[0]) for call in recorder.calls])


def as_table(recorded: RecordedLayer) -> torch.Tensor:
    """Return the weight of every expert for every token, NaN where it did not run."""
    ids, weights = (torch.from_numpy(v).cpu() for v in (recorded.experts, recorded.weights))
    ids = ids.long()
    num_experts = recorded.layer.num_experts
    table = torch.full((len(ids), num_experts + 1), torch.nan, device="cpu")
    table.scatter_(1, ids.masked_fill(ids < 0, num_experts), weights.float())
    return table[:, :num_experts]


def compare(on_cpu: torch.Tensor | str, found: torch.Tensor | str) -> str | None:
    """Return how two records differ; None if they agree."""
    if isinstance(on_cpu, str) or isinstance(found, str):
        shown = [each if isinstance(each, str) else "recorded" for each in (on_cpu, found)]
        return f"CPU: {shown[0]}; GPU: {shown[1]}" if shown[0] != shown[1] else None
    if on_cpu.shape != found.shape:
        return f"shapes {tuple(on_cpu.shape)} and {tuple(found.shape)}"
    num_pairs = int((on_cpu.isnan() != found.isnan()).sum())
    error = float((on_cpu - found).abs().nan_to_num().max())
    if num_pairs or error > TOLERANCE:
        return f"{num_pairs} other pairs, weights off by {error:.1e}"
    return None


@contextmanager
def default_device(name: str) -> Iterator[None]:
    """Make tensors on a device unless another is named."""
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device("cpu")


if __name__ == "__main__":
    main()
