"""Layers of frameworks that need a GPU, with the function that each of their experts computes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.frameworks.megatron_core import build_moe_layer

# MegaBlocks' sparse products have blocks of 128 rows and columns.
HIDDEN_SIZE, INNER_SIZE, NUM_EXPERTS, TOP_K = 128, 128, 8, 2

# The output of an expert for some rows.
RunExpert = Callable[[int, torch.Tensor], torch.Tensor]
# Ids and weights among a router's results, or among what another module receives.
ReadDecision = Callable[[tuple[Any, ...]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class GpuLayer:
    """One layer of a framework.

    Attributes:
        block: The layer.
        run_expert: Its experts, one by one, in float64.
        router: Path of its router.
        read_decision: Ids and weights among what the router returns.
        has_drops: Whether experts have a capacity.
        factor: By which the layer multiplies the sum of its experts.
        rest: What it adds to that; None if it adds nothing.
    """

    block: nn.Module
    run_expert: RunExpert
    router: str
    read_decision: ReadDecision
    has_drops: bool = False
    factor: float = 1.0
    rest: Callable[[torch.Tensor], torch.Tensor] | None = None


def gated(first: torch.Tensor, third: torch.Tensor, second: torch.Tensor) -> RunExpert:
    """Return experts of stacked matrices, each with rows of inputs and columns of outputs."""

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        inner = F.silu(rows @ first[expert].double()) * (rows @ third[expert].double())
        output: torch.Tensor = inner @ second[expert].double()
        return output

    return run


def megablocks(
    kind: str, implementation: str, *, mlp: str = "mlp", dtype: torch.dtype, device: str
) -> GpuLayer:
    """Return MegaBlocks' `MoE`, which drops tokens, or its `dMoE`, which doesn't."""
    arguments = importlib.import_module("megablocks.layers.arguments").Arguments(
        hidden_size=HIDDEN_SIZE,
        ffn_hidden_size=INNER_SIZE,
        bias=False,
        return_bias=False,
        moe_num_experts=NUM_EXPERTS,
        moe_top_k=TOP_K,
        moe_normalize_expert_weights=1,
        mlp_type=mlp,
        mlp_impl="grouped",
        fp16=dtype is torch.float16,
        bf16=dtype is torch.bfloat16,
        device=torch.device(device),
    )
    # It refuses its own sparse products with Triton 3.2 and later.
    arguments.mlp_impl = implementation
    module = importlib.import_module(
        "megablocks.layers.dmoe" if kind == "dMoE" else "megablocks.layers.moe"
    )
    block = getattr(module, kind)(arguments)
    experts = block.experts.mlp
    by_expert = (NUM_EXPERTS, INNER_SIZE, HIDDEN_SIZE)

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        if kind == "MoE":
            first, second = experts.w1[expert], experts.w2[expert]
        else:
            first, second = experts.w1.view(by_expert)[expert].T, experts.w2.view(by_expert)[expert]
        inner = F.gelu(rows @ first.double(), approximate="tanh")
        if mlp == "glu":
            inner = inner * (rows @ experts.v1.view(by_expert)[expert].T.double())
        output: torch.Tensor = inner @ second.double()
        return output

    return GpuLayer(
        block, run, "router", lambda found: (found[2], found[1]), has_drops=kind == "MoE"
    )


class ScatterMoeBlock(nn.Module):
    """A router and ScatterMoE's experts, as its own examples put them together."""

    def __init__(self, kind: str, *, bias: bool) -> None:
        super().__init__()
        experts = getattr(importlib.import_module("scattermoe.mlp"), kind)
        self.router = nn.Linear(HIDDEN_SIZE, NUM_EXPERTS, bias=False)
        self.mlp = experts(
            HIDDEN_SIZE, INNER_SIZE, NUM_EXPERTS, TOP_K, bias=bias, activation=nn.SiLU()
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Route each token to its experts."""
        weights, ids = self.route(self.router(hidden_states.flatten(0, -2)))
        output: torch.Tensor = self.mlp(hidden_states, weights, ids)
        return output

    @staticmethod
    def route(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights and ids of the chosen experts."""
        weights, ids = scores.softmax(dim=-1).topk(TOP_K)
        return weights / weights.sum(dim=-1, keepdim=True), ids


def scattermoe(kind: str, *, bias: bool, dtype: torch.dtype, device: str) -> GpuLayer:
    """Return ScatterMoE's `MLP` or `GLUMLP` behind a router."""
    block = ScatterMoeBlock(kind, bias=bias).to(device, dtype)
    first, second = block.mlp.experts, block.mlp.output_experts

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        inner = rows @ first.weight[expert].T.double()
        if bias:
            inner = inner + first.bias[expert].double()
        if kind == "GLUMLP":
            plain, gate = inner.chunk(2, dim=-1)
            inner = F.silu(gate) * plain
        else:
            inner = F.silu(inner)
        output: torch.Tensor = inner @ second.weight[expert].T.double()
        if bias:
            output += second.bias[expert].double()
        return output

    def read(found: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = ScatterMoeBlock.route(found[0])
        return ids, weights

    return GpuLayer(block, run, "router", read)


def olmo_core(
    kind: str,
    *,
    has_shared: bool = False,
    has_grouped: bool = True,
    dtype: torch.dtype,
    device: str,
) -> GpuLayer:
    """Return OLMo-core's `MoE`, which drops tokens, or its `DroplessMoE`."""
    package = importlib.import_module("olmo_core.nn.moe")
    feed_forward = importlib.import_module("olmo_core.nn.feed_forward").FeedForwardConfig
    config = package.MoEConfig(
        name=kind,
        num_experts=NUM_EXPERTS,
        hidden_size=INNER_SIZE,
        capacity_factor=1.0 if kind == "default" else None,
        router=package.MoERouterConfig(top_k=TOP_K),
        lb_loss_weight=None,
        shared_mlp=feed_forward(hidden_size=INNER_SIZE, bias=False) if has_shared else None,
    )
    block = config.build(HIDDEN_SIZE, init_device=device).to(dtype)
    mlp = block.experts.mlp
    if not has_grouped:
        # As it is where grouped_gemm is not installed.
        mlp._gmm = None
    shared = block.shared_mlp

    def rest(rows: torch.Tensor) -> torch.Tensor:
        first, third, second = (
            linear.weight.double() for linear in (shared.w1, shared.w3, shared.w2)
        )
        output: torch.Tensor = (F.silu(rows @ first.T) * (rows @ third.T)) @ second.T
        return output / (TOP_K + 1)

    wide = (NUM_EXPERTS, INNER_SIZE, HIDDEN_SIZE)
    tall = (NUM_EXPERTS, HIDDEN_SIZE, INNER_SIZE)
    if kind == "default":
        run = gated(mlp.w1.view(tall), mlp.w3.view(tall), mlp.w2.view(wide))
    else:
        run = gated(mlp.w1.view(wide).mT, mlp.w3.view(wide).mT, mlp.w2.view(wide))
    return GpuLayer(
        block,
        run,
        "router",
        lambda found: (found[1], found[0]),
        has_drops=kind == "default",
        factor=TOP_K / (TOP_K + 1) if has_shared else 1.0,
        rest=rest if has_shared else None,
    )


def megatron(dispatcher: str, *, dtype: torch.dtype, device: str, **options: Any) -> GpuLayer:
    """Return Megatron-Core's `MoELayer`, in a group of this process alone."""
    core = importlib.import_module("megatron.core")
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        backend = "nccl" if device == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        core.parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    block: Any = build_moe_layer(
        dispatcher,
        hidden_size=HIDDEN_SIZE,
        inner_size=INNER_SIZE,
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        dtype=dtype,
        **options,
    ).to(device, dtype)
    experts = block.experts.local_experts

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        first, second = (
            linear.weight.double()
            for linear in (experts[expert].linear_fc1, experts[expert].linear_fc2)
        )
        gate, plain = (rows @ first.T).chunk(2, dim=-1)
        output: torch.Tensor = (F.silu(gate) * plain) @ second.T
        return output

    def read(found: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = found[0].topk(TOP_K)
        return ids, weights

    return GpuLayer(block, run, "router", read, has_drops="moe_expert_capacity_factor" in options)
