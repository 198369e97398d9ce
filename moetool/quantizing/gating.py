"""The way an experts module gates one half of its first product with the other, found by trying it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

# Beyond these, limits that a module doesn't name are looked for as well.
_FAR = (1e2, 3e4)
_NUM_STEPS = 25


class Gating(NamedTuple):
    """A gate times the sigmoid of itself, times a value: gate * sigmoid(alpha * gate) * (value + shift).

    Attributes:
        is_interleaved: Whether gates and values take turns in a product, or follow each other.
        limit: Gates are at most this, and values at most this far from 0.
        alpha: 1 in SiLU.
        shift: Is added to each value.
    """

    is_interleaved: bool
    limit: float | None
    alpha: float
    shift: float

    def apply(self, gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return gated values."""
        if self.limit is not None:
            gate = gate.clamp(max=self.limit)
            value = value.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (value + self.shift)


@torch.no_grad()
def find_gating(module: nn.Module) -> Gating | None:
    """Return how an experts module gates its products; None if it does so in any other way.

    Nothing is concluded from names: the module's own code runs, in float32 on the CPU, on pairs of
    gates and values up to well beyond the limits that it may hold.
    """
    if "gate_up_proj" not in module._parameters or _has_other_tensors(module):
        return None
    floats = {value for value in vars(module).values() if type(value) is float and value > 0}
    widest = 2 * max(floats | {6.0})
    steps = torch.linspace(-widest, widest, _NUM_STEPS, device="cpu", dtype=torch.float32)
    far = torch.tensor([sign * far for far in _FAR for sign in (-1, 1)], device="cpu")
    grid = torch.cat([steps, far])
    gate, value = (side.flatten() for side in torch.meshgrid(grid, grid, indexing="ij"))
    for is_interleaved in (False, True):
        pair = torch.stack([gate, value], dim=1) if is_interleaved else torch.stack([gate, value])
        found = _apply(module, pair.reshape(1, -1))
        for gating in _iter_candidates(floats, is_interleaved=is_interleaved):
            expected = gating.apply(gate, value)
            if found.shape == (1, len(gate)) and torch.allclose(
                found[0], expected, rtol=1e-5, atol=1e-6
            ):
                return gating
    return None


def _apply(module: Any, rows: torch.Tensor) -> torch.Tensor:
    if hasattr(module, "_apply_gate"):
        applied: torch.Tensor = module._apply_gate(rows)
        return applied
    gate, up = rows.chunk(2, dim=-1)
    gated: torch.Tensor = module.act_fn(gate) * up
    return gated


def _has_other_tensors(module: nn.Module) -> bool:
    """Return whether a module holds more than matrices and biases: what training changes may gate."""
    matrices = {"gate_up_proj", "down_proj"}
    names = {name for name, _ in itertools.chain(module.named_parameters(), module.named_buffers())}
    return bool(names - matrices - {f"{name}_bias" for name in matrices})


def _iter_candidates(floats: set[float], *, is_interleaved: bool) -> Iterator[Gating]:
    limits = (None, *sorted(floats))
    alphas = (1.0, *sorted(floats - {1.0}))
    for limit, alpha, shift in itertools.product(limits, alphas, (0.0, 1.0)):
        yield Gating(is_interleaved, limit, alpha, shift)
