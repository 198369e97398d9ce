from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_tie_weights

from moetool.memory.answers.on_gpus import RankBytes
from moetool.memory.sharing.parallel import share_by_expert_parallel, share_by_tensor_parallel
from moetool.memory.sharing.shards import Shard, UnknownStyle, find_shard, split_evenly
from tests.families.tiny.configs import build_config
from tests.families.tiny.families import find_family
from tests.memory.published_skeletons import build_published_skeleton
from tests.memory.sharing.fake_ranks import count_loaded_bytes, sharing
from tests.simulation.skeletons import build_family_skeleton

# GQA and MHA, latent attention, sinks, linear attention, tied embeddings, shared experts, biases,
# packed rows, and experts of DBRX's own layout.
FAMILIES = [
    "afmoe",
    "axk2",
    "cohere2_moe",
    "dbrx",
    "deepseek_v3",
    "deepseek_v4",
    "doge",
    "ernie4_5_moe",
    "gemma4_text",
    "glm4_moe",
    "gpt_oss",
    "granitemoehybrid",
    "jamba",
    "lfm2_moe",
    "llama4_text",
    "longcat_flash",
    "minimax",
    "mixtral",
    "nemotron_h",
    "olmoe",
    "qwen3_next",
    "qwen4_exp_text",
]
# Its forward fails under the plan it has, whatever the heads: its mask keeps all of them.
WITH_A_PLAN_THAT_FAILS = ("doge",)
WITHOUT_EXPERT_PLAN = ("dbrx", "doge", "llama4_text", "longcat_flash")
TOKENS = torch.arange(8)[None]


def _build(name: str, *, device: str) -> PreTrainedModel:
    """Return a tiny family with nothing tied, as in `from_pretrained` before it loads weights."""
    config = build_config(name)
    model_class = find_family(name).model_class
    with torch.device(device), no_tie_weights():
        model: PreTrainedModel = (
            AutoModelForCausalLM.from_config(config)
            if model_class is None
            else getattr(transformers, model_class)(config)
        )
    model.set_experts_implementation("eager")
    model.eval()
    return model


def _count_at_ranks(name: str, *, num_gpus: int, are_experts_whole: bool) -> tuple[int, ...]:
    loaded = []
    for rank in range(num_gpus):
        model = _build(name, device="meta")
        with sharing(model, rank=rank, num_gpus=num_gpus, are_experts_whole=are_experts_whole):
            loaded.append(count_loaded_bytes(model))
    return tuple(loaded)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_gpu_holds_what_transformers_would_load_there(family: str) -> None:
    ranks = share_by_tensor_parallel(build_family_skeleton(family), num_gpus=2)
    assert ranks.reason is None
    assert ranks.weights_bytes == _count_at_ranks(family, num_gpus=2, are_experts_whole=False)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WITHOUT_EXPERT_PLAN)))
def test_with_whole_experts_each_gpu_holds_what_transformers_would_load(family: str) -> None:
    ranks = share_by_expert_parallel(build_family_skeleton(family), num_gpus=2)
    assert ranks.reason is None
    assert ranks.weights_bytes == _count_at_ranks(family, num_gpus=2, are_experts_whole=True)


@pytest.mark.parametrize(
    "family", ["afmoe", "dbrx", "deepseek_v3", "gpt_oss", "nemotron_h", "qwen4_exp_text"]
)
def test_what_does_not_divide_evenly_is_cut_as_transformers_cuts_it(family: str) -> None:
    # Widths such as 96 and 40, and 256 tokens, by 5.
    ranks = share_by_tensor_parallel(build_family_skeleton(family), num_gpus=5)
    assert len(set(ranks.weights_bytes)) > 1
    assert ranks.weights_bytes == _count_at_ranks(family, num_gpus=5, are_experts_whole=False)


@pytest.mark.parametrize("num_gpus", [2, 4, 5])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WITH_A_PLAN_THAT_FAILS)))
def test_transformers_forward_runs_unless_heads_are_cut(family: str, num_gpus: int) -> None:
    ranks = share_by_tensor_parallel(build_family_skeleton(family), num_gpus=num_gpus)
    model = _build(family, device="cpu")
    shared = sharing(model, rank=0, num_gpus=num_gpus, are_experts_whole=False)
    with torch.inference_mode(), shared:
        if ranks.reason is None:
            model(TOKENS, use_cache=False)
        else:
            assert ranks.reason.endswith(f"heads can't be shared evenly by {num_gpus} GPUs")
            assert ranks.weights_bytes == ()
            with pytest.raises(RuntimeError, match="is invalid for input of size"):
                model(TOKENS, use_cache=False)


def test_query_heads_are_not_cut_either() -> None:
    skeleton = build_family_skeleton("deepseek_v2")
    ranks = share_by_tensor_parallel(skeleton, num_gpus=8)
    assert ranks.reason == "4 query heads can't be shared evenly by 8 GPUs"


def test_mixtral_on_eight_gpus_is_as_by_hand() -> None:
    ranks = share_by_tensor_parallel(build_published_skeleton("mixtral-8x7b"), num_gpus=8)
    attention = 2 * 4096 * 4096 + 2 * 1024 * 4096
    cut = 32 * (attention + 8 * 3 * 4096 * 14336) + 2 * 32000 * 4096
    whole = 32 * (8 * 4096 + 2 * 4096) + 4096
    rotary = 2 * 4 * 64  # two buffers of float32
    assert ranks.replicated_bytes == 2 * whole + rotary
    assert ranks.weights_bytes == (2 * cut // 8 + 2 * whole + rotary,) * 8
    experts = share_by_expert_parallel(build_published_skeleton("mixtral-8x7b"), num_gpus=8)
    assert experts.weights_bytes == ranks.weights_bytes
    assert experts.way == "expert_parallel"


def test_attention_that_deepseek_v3_does_not_share_is_on_every_gpu() -> None:
    skeleton = build_published_skeleton("deepseek-v3")
    ranks = share_by_expert_parallel(skeleton, num_gpus=8)
    assert ranks.replicated_bytes is not None
    kept = ("self_attn", "norm", "mlp.gate.", "rotary_emb")
    tensors = [*skeleton.named_parameters(), *skeleton.named_buffers()]
    whole = sum(t.nbytes for path, t in tensors if any(word in path for word in kept))
    assert ranks.replicated_bytes == whole
    experts = 58 * 256 * 3 * 7168 * 2048 * 2
    total = sum(t.nbytes for _, t in tensors)
    assert ranks.weights_bytes[0] == whole + experts // 8 + (total - whole - experts) // 8


def test_experts_that_can_not_be_shared_evenly_are_a_reason() -> None:
    skeleton = build_family_skeleton("olmoe", num_experts=6)
    ranks = share_by_expert_parallel(skeleton, num_gpus=4)
    assert ranks == RankBytes(
        way="expert_parallel",
        num_gpus=4,
        weights_bytes=(),
        reason="6 experts can't be shared evenly by 4 GPUs",
    )


def test_a_family_without_a_plan_is_a_reason() -> None:
    jetmoe = build_family_skeleton("jetmoe")
    tensors = share_by_tensor_parallel(jetmoe, num_gpus=2)
    assert tensors.reason == "JetMoeForCausalLM has no tensor-parallel plan"
    experts = share_by_expert_parallel(build_family_skeleton("dbrx"), num_gpus=2)
    assert experts.reason == "DbrxForCausalLM has no expert-parallel plan"


@pytest.mark.parametrize("family", ["jetmoe", "zaya"])
def test_transformers_refuses_to_share_a_family_without_a_plan(family: str) -> None:
    model = _build(family, device="meta")
    with (
        pytest.raises(ValueError, match="has no `tp_plan`"),
        sharing(model, rank=0, num_gpus=2, are_experts_whole=True),
    ):
        pass


def test_packed_weights_are_a_reason() -> None:
    skeleton = build_family_skeleton("mixtral")
    attention = skeleton.get_submodule("model.layers.0.self_attn.q_proj")
    packed = torch.empty(2048, 1, dtype=torch.uint8, device="meta")
    attention.weight = nn.Parameter(packed, requires_grad=False)
    ranks = share_by_tensor_parallel(skeleton, num_gpus=2)
    assert (
        ranks.reason
        == "transformers' forward fails if weights quantized by bitsandbytes are shared"
    )


def test_an_unknown_style_is_a_reason() -> None:
    skeleton = build_family_skeleton("mixtral")
    assert skeleton._tp_plan is not None
    skeleton._tp_plan["model.layers.*.self_attn.o_proj"] = "diagonal"
    ranks = share_by_tensor_parallel(skeleton, num_gpus=2)
    assert ranks.reason == (
        "it is unknown how the style 'diagonal' shares model.layers.0.self_attn.o_proj.weight"
    )
    with pytest.raises(UnknownStyle):
        find_shard("diagonal", name="weight", num_dims=2)


@given(size=st.integers(1, 500), num_gpus=st.integers(1, 20), num_packed=st.integers(1, 3))
def test_every_index_goes_to_one_gpu(size: int, num_gpus: int, num_packed: int) -> None:
    pieces = split_evenly(size, num_gpus=num_gpus, num_packed=num_packed)
    assert len(pieces) == num_gpus
    assert sum(pieces) == size
    assert pieces == sorted(pieces, reverse=True)


@given(size=st.integers(1, 500), num_gpus=st.integers(1, 20))
def test_pieces_are_those_of_torch_chunk(size: int, num_gpus: int) -> None:
    chunks = [len(chunk) for chunk in torch.empty(size).chunk(num_gpus)]
    pieces = split_evenly(size, num_gpus=num_gpus)
    assert [piece for piece in pieces if piece] == chunks


def test_packed_matrices_are_cut_one_by_one() -> None:
    # Two of 5 rows by 2: 3 and 2 of each, where 10 rows would be 5 and 5.
    assert split_evenly(10, num_gpus=2, num_packed=2) == [6, 4]


def test_a_bias_of_columns_is_on_every_gpu_and_one_of_rows_is_cut() -> None:
    assert find_shard("rowwise", name="bias", num_dims=1) is None
    columns = find_shard("rowwise", name="sinks", num_dims=1)
    assert columns is not None
    assert columns.dim == 0
    rows = find_shard("colwise", name="bias", num_dims=1)
    assert rows is not None
    assert (rows.dim, rows.num_packed) == (0, 1)
    assert find_shard("packed_rowwise", name="down_proj_bias", num_dims=1) is None


def test_stacks_and_embeddings_are_cut_where_their_features_lie() -> None:
    assert find_shard("packed_colwise", name="gate_up_proj", num_dims=3) == Shard(1, num_packed=2)
    assert find_shard("packed_rowwise", name="gate_up_proj", num_dims=3) == Shard(2, num_packed=2)
    assert find_shard("embedding_rowwise", name="weight", num_dims=2) == Shard(0)
    assert find_shard("embedding_colwise", name="weight", num_dims=2) == Shard(1)


def test_a_tied_head_is_held_once_however_it_is_known_to_be_tied() -> None:
    tied = build_family_skeleton("lfm2_moe")
    ranks = share_by_tensor_parallel(tied, num_gpus=2)
    untied = share_by_tensor_parallel(_build("lfm2_moe", device="meta"), num_gpus=2)
    assert untied.weights_bytes == ranks.weights_bytes
    tied.all_tied_weights_keys = {}
    assert share_by_tensor_parallel(tied, num_gpus=2) == ranks


def test_the_tensor_plan_is_dropped_within_what_the_expert_plan_names() -> None:
    skeleton = build_family_skeleton("mixtral")
    before = share_by_tensor_parallel(skeleton, num_gpus=2)
    skeleton._ep_plan = {"model.layers.*.mlp": "ep_dispatch_experts"}
    after = share_by_expert_parallel(skeleton, num_gpus=2)
    experts = 4 * 8 * 3 * 64 * 96 * 4
    assert after.weights_bytes[0] == before.weights_bytes[0] + experts // 2


def test_heads_of_a_tower_are_not_cut_either() -> None:
    vision = {"num_attention_heads": 3, "num_key_value_heads": 3}
    skeleton = build_family_skeleton("gemma4", vision_config=vision)
    ranks = share_by_tensor_parallel(skeleton, num_gpus=2)
    assert ranks.reason is not None
    assert ranks.reason.startswith("3 ")
