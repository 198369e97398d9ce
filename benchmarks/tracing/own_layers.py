"""Measure what recording a layer of one's own costs on the CPU, by the rule that reads it.

    python -m benchmarks.tracing.own_layers

Plain and recorded calls take turns in one process. Each figure is the median processor time of a recorded
call, on one thread, over that of a plain one: for the first call inside a recorder, and for those after
it. The last columns are how often the block's forward ran in each, the call itself included.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from moetool import RoutingRecorder

TOP_K = 2
ROUNDS, LATER_CALLS = 5, 4
# Outside of modules, where a second run does not find it as it was.
FORWARDS = [0]


class Size(NamedTuple):
    """A size of a layer and of its call."""

    width: int
    inner: int
    num_experts: int
    num_tokens: int


SIZES = {"tiny": Size(16, 32, 4, 16), "middle": Size(256, 1024, 8, 512)}


class Layer(nn.Module):
    """Chooses the top-k of a linear router, and loops over a list of experts."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.gate: Any = nn.Linear(size.width, size.num_experts, bias=False)
        self.add_experts()

    def add_experts(self) -> None:
        """Make the experts."""
        width, inner, num_experts, _ = self.size
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
            for _ in range(num_experts)
        )

    def score(self, rows: torch.Tensor) -> torch.Tensor:
        """Return a score for each expert."""
        scores: torch.Tensor = self.gate(rows)
        return scores

    def run(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """Return what an expert makes of rows."""
        output: torch.Tensor = self.experts[expert](rows)
        return output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of experts, and what is added to it."""
        FORWARDS[0] += 1
        rows = x.reshape(-1, x.shape[-1])
        scores, ids = self.score(rows).topk(TOP_K, dim=-1)
        return self.mix(rows, scores.softmax(dim=-1), ids).view_as(x)

    def mix(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum."""
        output = torch.zeros_like(rows)
        for expert in range(self.size.num_experts):
            tokens, places = torch.where(ids == expert)
            if len(tokens):
                output[tokens] += weights[tokens, places, None] * self.run(expert, rows[tokens])
        return output


class WithSharedExpert(Layer):
    """Adds the output of an expert for all tokens."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.shared_expert = nn.Sequential(
            nn.Linear(size.width, size.inner), nn.GELU(), nn.Linear(size.inner, size.width)
        )

    def mix(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum."""
        output: torch.Tensor = super().mix(rows, weights, ids) + self.shared_expert(rows)
        return output


class Surrounded(Layer):
    """Norms its input, projects the experts' sum, and adds the input."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.norm, self.proj = nn.LayerNorm(size.width), nn.Linear(size.width, size.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of experts, and what is added to it."""
        output: torch.Tensor = x + self.proj(super().forward(self.norm(x)))
        return output


class RouterParameter(Layer):
    """Routes by a parameter."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.gate = nn.Parameter(torch.randn(size.width, size.num_experts) / size.width**0.5)

    def score(self, rows: torch.Tensor) -> torch.Tensor:
        """Return a score for each expert."""
        scores: torch.Tensor = rows @ self.gate
        return scores


class LayersInLists(Layer):
    """Keeps the layers of its experts in three lists."""

    def add_experts(self) -> None:
        """Make the experts."""
        width, inner, num_experts, _ = self.size

        def layers(width: int, out: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(width, out, bias=False) for _ in range(num_experts))

        self.fc1, self.fc2, self.fc3 = (
            layers(width, inner),
            layers(width, inner),
            layers(inner, width),
        )

    def run(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """Return what an expert makes of rows."""
        output: torch.Tensor = self.fc3[expert](
            F.silu(self.fc1[expert](rows)) * self.fc2[expert](rows)
        )
        return output


class Stacked(Layer):
    """Loops over matrices that the block stacks itself."""

    def add_experts(self) -> None:
        """Make the experts."""
        width, inner, num_experts, _ = self.size
        self.w1 = nn.Parameter(torch.randn(num_experts, width, inner) / width**0.5)
        self.w2 = nn.Parameter(torch.randn(num_experts, inner, width) / inner**0.5)

    def run(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """Return what an expert makes of rows."""
        return F.gelu(rows @ self.w1[expert]) @ self.w2[expert]


class AllOnAll(Stacked):
    """Runs all experts on all tokens, with weights of zero."""

    def mix(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum."""
        table = weights.new_zeros(len(ids), self.size.num_experts).scatter(1, ids, weights)
        inner = F.gelu(torch.einsum("td,edf->tef", rows, self.w1))
        return (table[..., None] * torch.einsum("tef,efd->ted", inner, self.w2)).sum(dim=1)


class DispatchAndCombine(Stacked):
    """Sends tokens to slots by a mask, and back by weights (GShard)."""

    def mix(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum."""
        num_experts, capacity = self.size.num_experts, TOP_K * len(rows) // self.size.num_experts
        chosen = F.one_hot(ids, num_experts)  # (num_tokens, top_k, num_experts)
        rank = (chosen.flatten(0, 1).cumsum(dim=0) - 1).view_as(chosen)
        kept = chosen * (rank < capacity)
        slots = F.one_hot(rank.clamp(0, capacity - 1), capacity) * kept[..., None]
        combine = (slots * weights[..., None, None]).sum(dim=1).to(rows.dtype)
        received = torch.einsum("tec,td->ecd", (combine > 0).to(rows), rows)
        inner = F.gelu(torch.einsum("ecd,edf->ecf", received, self.w1))
        return torch.einsum("tec,ecd->td", combine, torch.einsum("ecf,efd->ecd", inner, self.w2))


LAYERS: dict[str, tuple[str, type[Layer]]] = {
    "a list of experts": ("separate, simple", Layer),
    "and a shared expert": ("separate, simple", WithSharedExpert),
    "a norm, a projection, a residual": ("separate, searched", Surrounded),
    "a parameter routes": ("separate, searched", RouterParameter),
    "fc1, fc2, fc3": ("separate, searched", LayersInLists),
    "stacked, in a loop": ("operations", Stacked),
    "stacked, all on all": ("operations", AllOnAll),
    "stacked, GShard": ("operations", DispatchAndCombine),
}


class Costs(NamedTuple):
    """Times of calls in seconds, and how often the block ran in each."""

    plain: float
    first: float
    later: float
    first_forwards: int
    later_forwards: float


def main() -> None:
    """Print a line for each layer and size."""
    torch.set_num_threads(1)
    print(f"{platform.machine()}, one thread, torch {torch.__version__}\n")
    print("| layer | rule | size | plain | first call | later calls | runs, first | runs, later |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for title, (rule, kind) in LAYERS.items():
        for name, size in SIZES.items():
            torch.manual_seed(0)
            costs = measure(kind(size).eval(), torch.randn(1, size.num_tokens, size.width))
            print(
                f"| {title} | {rule} | {name} | {costs.plain * 1e3:.2f} ms "
                f"| {costs.first / costs.plain:.1f} | {costs.later / costs.plain:.1f} "
                f"| {costs.first_forwards} | {costs.later_forwards:.0f} |",
                flush=True,
            )


def measure(layer: nn.Module, hidden: torch.Tensor) -> Costs:
    """Return the costs of a layer."""
    plain, first, later = [], [], []
    for number in range(ROUNDS + 1):
        plains = [take_time(lambda: layer(hidden)) for _ in range(LATER_CALLS + 1)]
        with RoutingRecorder(layer) as recorder:
            FORWARDS[0] = 0
            first_time = take_time(lambda: layer(hidden))
            first_forwards, FORWARDS[0] = FORWARDS[0], 0
            laters = [take_time(lambda: layer(hidden)) for _ in range(LATER_CALLS)]
            later_forwards = FORWARDS[0] / LATER_CALLS
        recorder.take_calls()
        if number:
            plain += plains
            first.append(first_time)
            later += laters
    medians = [statistics.median(times) for times in (plain, first, later)]
    return Costs(medians[0], medians[1], medians[2], first_forwards, later_forwards)


def take_time(run: Callable[[], object]) -> float:
    """Return the seconds that a function takes."""
    with torch.no_grad():
        start = time.process_time()
        run()
        return time.process_time() - start


if __name__ == "__main__":
    main()
