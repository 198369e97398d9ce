"""Layers of frameworks, small, with the function that each of their experts computes."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

from tests.frameworks.megatron_core import build_moe_layer

HIDDEN_SIZE, NUM_EXPERTS, TOP_K, INNER_SIZE = 16, 6, 2, 24
VOCAB_SIZE = 64

# The output of an expert for some rows.
RunExpert = Callable[[int, torch.Tensor], torch.Tensor]


class NotInThisVersionError(Exception):
    """The installed version of a package does not have a layer."""


@dataclass(frozen=True)
class FrameworkLayer:
    """One layer of a framework.

    Attributes:
        block: The layer.
        run_expert: Its experts, one by one.
        tolerance: Largest difference from the weights that are fitted: float64 has many digits,
            products in bfloat16 have few.
        dtype: Of the model around it.
        shape: Of the batch.
        is_model: Whether the block is a whole model, called with token ids.
    """

    block: nn.Module
    run_expert: RunExpert
    tolerance: float = 1e-6
    dtype: torch.dtype = torch.float64
    shape: tuple[int, int] = (1, 12)
    is_model: bool = False


def feed_forward() -> nn.Module:
    return nn.Sequential(
        nn.Linear(HIDDEN_SIZE, INNER_SIZE), nn.SiLU(), nn.Linear(INNER_SIZE, HIDDEN_SIZE)
    )


def of_list(experts: Any) -> RunExpert:
    return lambda expert, rows: experts[expert](rows)


def start_process_group() -> None:
    """Make this process a group: several frameworks ask for one."""
    if not torch.distributed.is_initialized():
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK="0", WORLD_SIZE="1")
        os.environ["LOCAL_RANK"] = "0"
        # In memory: a port may be taken.
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


def fairscale() -> FrameworkLayer:
    start_process_group()
    moe = importlib.import_module("fairscale.nn.moe")
    experts = nn.ModuleList(feed_forward() for _ in range(NUM_EXPERTS))
    block = moe.MOELayer(moe.Top2Gate(HIDDEN_SIZE, NUM_EXPERTS), experts)
    # It wants a multiple of its number of experts.
    return FrameworkLayer(
        block,
        of_list(block.experts),
        tolerance=1e-4,
        dtype=torch.float32,
        shape=(NUM_EXPERTS, 3),
    )


def deepspeed(**options: Any) -> FrameworkLayer:
    start_process_group()
    package = importlib.import_module("deepspeed")
    package.init_distributed(dist_backend="gloo")
    layer = importlib.import_module("deepspeed.moe.layer")
    block = layer.MoE(HIDDEN_SIZE, feed_forward(), NUM_EXPERTS, k=TOP_K, **options)
    block.set_deepspeed_parallelism()
    return FrameworkLayer(block, of_list(block.deepspeed_moe.experts.deepspeed_experts))


def mixture_of_experts() -> FrameworkLayer:
    package = importlib.import_module("mixture_of_experts")
    block = package.MoE(HIDDEN_SIZE, num_experts=NUM_EXPERTS, hidden_dim=INNER_SIZE)
    return FrameworkLayer(block, _of_lucidrains_stack(block.experts))


def _of_lucidrains_stack(experts: Any) -> RunExpert:
    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        first, second = (weight.flatten(0, -3) for weight in (experts.w1, experts.w2))
        output: torch.Tensor = experts.act(rows @ first[expert]) @ second[expert]
        return output

    return run


def hierarchical() -> FrameworkLayer:
    package = importlib.import_module("mixture_of_experts")
    block = package.HeirarchicalMoE(HIDDEN_SIZE, num_experts=(2, 3), hidden_dim=INNER_SIZE)
    return FrameworkLayer(block, _of_lucidrains_stack(block.experts))


def st_moe(*, is_straight: bool) -> FrameworkLayer:
    package = importlib.import_module("st_moe_pytorch")
    block = package.MoE(
        HIDDEN_SIZE, num_experts=NUM_EXPERTS, straight_through_dispatch_tensor=is_straight
    )
    return FrameworkLayer(block, of_list(block.experts.experts))


def soft_moe() -> FrameworkLayer:
    package = importlib.import_module("soft_moe_pytorch")
    block = package.SoftMoE(HIDDEN_SIZE, seq_len=12, num_experts=NUM_EXPERTS)
    return FrameworkLayer(block, of_list(block.experts.experts))


def pytorch_mixtures(kind: str) -> FrameworkLayer:
    package = importlib.import_module("pytorch_mixtures")
    configs = importlib.import_module("pytorch_mixtures.configs")
    names = configs.MoEConfig.__dataclass_fields__
    wanted = {
        "hidden_dim": HIDDEN_SIZE,
        "intermediate_dim": 2 * INNER_SIZE,
        "num_experts": NUM_EXPERTS,
        "topk": TOP_K,
        "capacity_factor": 2.0,
        "dtype": torch.float64,
        "router_fn": "topk",
        "expert_fn": "ff",
        "expert_act": "silu",
    }
    config = configs.MoEConfig(**{name: wanted[name] for name in names if name in wanted})
    block = getattr(package, kind)(config)
    return FrameworkLayer(block, of_list(block.experts))


def peer() -> FrameworkLayer:
    package = importlib.import_module("PEER_pytorch")
    block = package.PEER(HIDDEN_SIZE, heads=2, num_experts=16, num_experts_per_head=2, dim_key=8)
    return FrameworkLayer(block, lambda _expert, rows: rows)


def labml() -> FrameworkLayer:
    switch = importlib.import_module("labml_nn.transformers.switch")
    layers = importlib.import_module("labml_nn.transformers.feed_forward")
    block = switch.SwitchFeedForward(
        capacity_factor=1.0,
        drop_tokens=False,
        is_scale_prob=True,
        n_experts=NUM_EXPERTS,
        expert=layers.FeedForward(HIDDEN_SIZE, INNER_SIZE, 0.0),
        d_model=HIDDEN_SIZE,
    )
    return FrameworkLayer(block, of_list(block.experts))


def litgpt() -> FrameworkLayer:
    model = importlib.import_module("litgpt.model")
    config = importlib.import_module("litgpt").Config(
        n_embd=HIDDEN_SIZE,
        n_head=2,
        moe_intermediate_size=INNER_SIZE,
        intermediate_size=INNER_SIZE,
        n_expert=NUM_EXPERTS,
        n_expert_per_token=TOP_K,
        mlp_class_name="LLaMAMoE",
    )
    block = model.LLaMAMoE(config)
    return FrameworkLayer(block, of_list(block.experts))


def megatron(dispatcher: str, **options: Any) -> FrameworkLayer:
    # It asks for a GPU's number and stream even where its tensors are on the CPU.
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    start_process_group()
    core = importlib.import_module("megatron.core")
    if not core.parallel_state.model_parallel_is_initialized():
        core.parallel_state.initialize_model_parallel()
    with mock.patch("torch.cuda.Stream"):
        block: Any = build_moe_layer(
            dispatcher,
            hidden_size=HIDDEN_SIZE,
            inner_size=INNER_SIZE,
            num_experts=NUM_EXPERTS,
            top_k=TOP_K,
            dtype=torch.float64,
            **options,
        )

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = block.experts.local_experts[expert](
            rows, per_token_scale=torch.ones(len(rows), dtype=rows.dtype)
        )[0]
        return output

    return FrameworkLayer(block, run)


def torchtitan(*, score_func: str = "softmax") -> FrameworkLayer:
    if importlib.util.find_spec("torchtitan.models.common") is None:
        raise NotInThisVersionError
    moe = importlib.import_module("torchtitan.models.common.moe")
    linear = importlib.import_module("torchtitan.models.common.linear").Linear
    dispatcher = importlib.import_module("torchtitan.models.common.token_dispatcher")
    config = moe.MoE.Config(
        num_experts=NUM_EXPERTS,
        routed_experts=moe.RoutedExperts.Config(
            inner_experts=moe.GroupedExperts.Config(
                dim=HIDDEN_SIZE, hidden_dim=INNER_SIZE, num_experts=NUM_EXPERTS
            ),
            token_dispatcher=dispatcher.LocalTokenDispatcher.Config(
                num_experts=NUM_EXPERTS, top_k=TOP_K
            ),
        ),
        router=moe.TokenChoiceTopKRouter.Config(
            num_experts=NUM_EXPERTS,
            gate=linear.Config(in_features=HIDDEN_SIZE, out_features=NUM_EXPERTS, bias=False),
            top_k=TOP_K,
            score_func=score_func,
        ),
    )
    block = config.build()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    experts = block.routed_experts.inner_experts

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        first, third, second = (
            weight[expert].bfloat16().T
            for weight in (experts.w1_EFD, experts.w3_EFD, experts.w2_EDF)
        )
        rows = rows.bfloat16()
        output: torch.Tensor = (F.silu(rows @ first) * (rows @ third)) @ second
        return output.float()

    return FrameworkLayer(block, run, tolerance=0.03, dtype=torch.float32)


def olmo_core(kind: str) -> FrameworkLayer:
    moe = importlib.import_module("olmo_core.nn.moe")
    config = moe.MoEConfig(
        name=kind,
        num_experts=NUM_EXPERTS,
        hidden_size=INNER_SIZE,
        capacity_factor=1.2 if kind == "default" else None,
        router=moe.MoERouterConfig(top_k=TOP_K),
        lb_loss_weight=None,
    )
    block = config.build(HIDDEN_SIZE, init_device="cpu")
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    mlp = block.experts.mlp
    shape = (NUM_EXPERTS, -1, HIDDEN_SIZE)

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        if kind == "default":
            into = (NUM_EXPERTS, HIDDEN_SIZE, INNER_SIZE)
            first, third = (weight.view(into)[expert] for weight in (mlp.w1, mlp.w3))
            second = mlp.w2.view(NUM_EXPERTS, INNER_SIZE, HIDDEN_SIZE)[expert]
        else:
            first, third = (weight.view(shape)[expert].T for weight in (mlp.w1, mlp.w3))
            second = mlp.w2.view(shape)[expert]
        output: torch.Tensor = (F.silu(rows @ first) * (rows @ third)) @ second
        return output

    return FrameworkLayer(block, run, tolerance=1e-4, dtype=torch.float32)


def torchtitan_before() -> FrameworkLayer:
    """Return the layer of torchtitan 0.2, whose weights multiply what experts receive."""
    if importlib.util.find_spec("torchtitan.models.moe") is None:
        raise NotInThisVersionError
    # torch counts whole numbers in bins on GPUs alone.
    count = torch.histc
    torch.histc = lambda values, **options: count(values.float(), **options).long()
    moe = importlib.import_module("torchtitan.models.moe")
    arguments = moe.MoEArgs(
        num_experts=NUM_EXPERTS, num_shared_experts=0, top_k=TOP_K, use_grouped_mm=False
    )
    block = moe.MoE(arguments, dim=HIDDEN_SIZE, hidden_dim=INNER_SIZE)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    for buffer in block.buffers():
        buffer.zero_()
    experts = block.experts

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        first, second, third = (weight[expert].T for weight in (experts.w1, experts.w2, experts.w3))
        output: torch.Tensor = (F.silu(rows @ first) * (rows @ third)) @ second
        return output

    return FrameworkLayer(block, run, tolerance=0.02, dtype=torch.float32)


def tutel(gate: str, *, weighs_input: bool = False) -> FrameworkLayer:
    start_process_group()
    moe = importlib.import_module("tutel.moe")
    block = moe.moe_layer(
        gate_type={"type": gate, "k": TOP_K, "capacity_factor": 1.0},
        model_dim=HIDDEN_SIZE,
        is_postscore=not weighs_input,
        experts={
            "type": "ffn",
            "num_experts_per_device": NUM_EXPERTS,
            "hidden_size_per_expert": INNER_SIZE,
            "activation_fn": F.silu,
        },
    )
    experts = block.experts

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        inner = F.silu(rows @ experts.batched_fc1_w[expert].T + experts.batched_fc1_bias[expert])
        output: torch.Tensor = (
            inner @ experts.batched_fc2_w[expert] + experts.batched_fc2_bias[expert]
        )
        return output

    return FrameworkLayer(block, run, tolerance=1e-4, dtype=torch.float32)
