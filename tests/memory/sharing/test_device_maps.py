from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.memory.answers.on_gpus import RankBytes
from moetool.memory.sharing.decoder_layers import find_decoder_layers
from moetool.memory.sharing.device_maps import DeviceMaps, share_by_device_map
from moetool.quantizing.kinds import Quantization
from tests.memory.published_skeletons import build_published_skeleton
from tests.simulation.skeletons import build_family_skeleton

GIB = 2**30

# Mixtral-8x7B in bfloat16: attention, router, two norms and eight experts.
MIXTRAL_LAYER = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 4096 + 2 * 4096 + 8 * 3 * 4096 * 14336)
MIXTRAL_EMBEDDING = 2 * 32000 * 4096


@pytest.fixture(scope="module")
def mixtral() -> PreTrainedModel:
    return build_published_skeleton("mixtral-8x7b")


def _sum_tensors(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _share(
    skeleton: PreTrainedModel,
    *,
    gpu_memory_bytes: int,
    num_gpus: int,
    reserve_bytes: int = 0,
    quantization: Quantization = Quantization.NONE,
) -> RankBytes:
    return share_by_device_map(
        RoutedSkeleton.of(skeleton),
        gpu_memory_bytes=gpu_memory_bytes,
        num_gpus=num_gpus,
        reserve_bytes=reserve_bytes,
        quantization=quantization,
    )


def _count_gpus(
    skeleton: PreTrainedModel,
    gpu_memory_bytes: int,
    *,
    cache_bytes: int = 0,
    activation_bytes: int = 0,
    context_bytes: int = 0,
    largest: int = 64,
) -> int | None:
    return DeviceMaps(RoutedSkeleton.of(skeleton), Quantization.NONE).count_gpus(
        gpu_memory_bytes=gpu_memory_bytes,
        cache_bytes=cache_bytes,
        activation_bytes=activation_bytes,
        context_bytes=context_bytes,
        largest=largest,
    )


def test_seven_layers_of_mixtral_lie_on_a_card_of_24_gib(mixtral: PreTrainedModel) -> None:
    ranks = _share(mixtral, gpu_memory_bytes=24 * GIB, num_gpus=1)
    assert ranks.num_layers == (7,)
    assert ranks.weights_bytes == (MIXTRAL_EMBEDDING + 7 * MIXTRAL_LAYER,)
    assert ranks.reason == "25 of 32 layers are left to the host's memory"


@pytest.mark.parametrize(
    ("name", "num_layers", "num_left"), [("qwen3-30b-a3b", 19, 29), ("deepseek-v3", 0, 61)]
)
def test_other_models_need_the_number_of_24_gib_gpus_that_was_seen(
    name: str, num_layers: int, num_left: int
) -> None:
    skeleton = build_published_skeleton(name)
    ranks = _share(skeleton, gpu_memory_bytes=24 * GIB, num_gpus=1)
    assert ranks.num_layers == (num_layers,)
    assert ranks.reason is not None
    assert ranks.reason.startswith(f"{num_left} of ")


def test_what_is_reserved_is_not_filled(mixtral: PreTrainedModel) -> None:
    ranks = _share(mixtral, gpu_memory_bytes=24 * GIB, num_gpus=1, reserve_bytes=MIXTRAL_LAYER)
    assert ranks.num_layers == (6,)


def test_more_reserved_than_there_is_leaves_all_to_the_host(mixtral: PreTrainedModel) -> None:
    ranks = _share(mixtral, gpu_memory_bytes=GIB, num_gpus=2, reserve_bytes=2 * GIB)
    assert ranks.weights_bytes == (0, 0)
    assert ranks.num_layers == (0, 0)


def test_bitsandbytes_leaves_a_tenth_free(mixtral: PreTrainedModel) -> None:
    # 0.9 · 24 GiB hold the embedding, the room for one layer, and six layers: not seven.
    ranks = _share(mixtral, gpu_memory_bytes=24 * GIB, num_gpus=1, quantization=Quantization.INT8)
    assert ranks.num_layers == (6,)


@pytest.mark.parametrize(
    "family",
    ["mixtral", "deepseek_v3", "gemma4", "gpt_oss", "granitemoe", "jamba", "nemotron_h", "doge"],
)
def test_gpus_that_hold_a_model_hold_each_of_its_tensors_once(family: str) -> None:
    skeleton = build_family_skeleton(family)
    total = _sum_tensors(skeleton)
    ranks = _share(skeleton, gpu_memory_bytes=total, num_gpus=3)
    assert ranks.reason is None
    assert sum(ranks.weights_bytes) == total
    assert ranks.num_layers is not None
    assert sum(ranks.num_layers) == len(find_decoder_layers(RoutedSkeleton.of(skeleton)))


def test_layers_of_towers_and_encoders_are_not_the_decoders() -> None:
    paths = list(find_decoder_layers(RoutedSkeleton.of(build_family_skeleton("gemma4"))))
    assert paths == [f"model.language_model.layers.{n}" for n in range(4)]
    paths = list(find_decoder_layers(RoutedSkeleton.of(build_family_skeleton("nllb-moe"))))
    assert paths == [f"model.decoder.layers.{n}" for n in range(2)]
    paths = list(
        find_decoder_layers(RoutedSkeleton.of(build_family_skeleton("openai_privacy_filter")))
    )
    assert len(paths) == 4


def test_what_lies_outside_of_layers_may_be_what_is_left() -> None:
    skeleton = build_family_skeleton("mixtral", vocab_size=100_000)
    embedding = 4 * 100_000 * 64
    layers = _sum_tensors(skeleton) - 2 * embedding
    # The first GPU keeps room for the largest part still to come: the head, as large as itself.
    ranks = _share(skeleton, gpu_memory_bytes=2 * embedding + layers - 1, num_gpus=1)
    assert ranks.num_layers is not None
    assert ranks.num_layers[0] == 4
    assert ranks.reason == "parts outside of layers are left to the host's memory"


def test_the_number_of_gpus_is_the_smallest_with_which_everything_has_room(
    mixtral: PreTrainedModel,
) -> None:
    # Each holds its layers' weights and cache in addition to 2 GiB; the first keeps a layer's room.
    found = _count_gpus(
        mixtral, 24 * GIB, cache_bytes=4 * GIB, activation_bytes=GIB, context_bytes=GIB
    )
    assert found == 5
    four = _share(mixtral, gpu_memory_bytes=24 * GIB, num_gpus=4, reserve_bytes=GIB)
    assert four.reason is not None
    five = _share(mixtral, gpu_memory_bytes=24 * GIB, num_gpus=5, reserve_bytes=GIB)
    assert five.reason is None
    assert five.num_layers == (6, 7, 7, 7, 5)
    # 7 of 32 layers: 18.95 GiB of weights, 0.875 GiB of cache.
    assert 7 * MIXTRAL_LAYER + 7 * 4 * GIB // 32 <= 22 * GIB


@pytest.mark.parametrize(("cache_gib", "num_gpus"), [(0, 2), (72, 2), (74, 3)])
def test_each_gpu_has_to_hold_the_cache_of_its_own_layers(
    mixtral: PreTrainedModel, cache_gib: int, num_gpus: int
) -> None:
    # Two GPUs hold 16 layers each: 43.5 GiB and half of the cache, of 80 GiB.
    found = _count_gpus(mixtral, 80 * GIB, cache_bytes=cache_gib * GIB)
    assert found == num_gpus


def test_activations_and_the_context_are_on_every_gpu(mixtral: PreTrainedModel) -> None:
    # 16 layers and the embedding take 43.5 GiB. Activations may take the room that the first GPU
    # keeps for another layer, 2.7 GiB, but the context may not.
    assert _count_gpus(mixtral, 48 * GIB, activation_bytes=4 * GIB) == 2
    assert _count_gpus(mixtral, 48 * GIB, activation_bytes=5 * GIB) == 3
    assert _count_gpus(mixtral, 48 * GIB, context_bytes=1 * GIB) == 2
    assert _count_gpus(mixtral, 48 * GIB, context_bytes=2 * GIB) == 3


def test_no_number_of_gpus_does_where_a_layer_is_larger_than_one(
    mixtral: PreTrainedModel,
) -> None:
    assert _count_gpus(mixtral, MIXTRAL_LAYER - 1) is None
    # An eighth of a GiB more than a layer is too little for the embedding or the head next to a layer,
    # and on the first GPU, which keeps a layer's room, for the embedding: so that one stays empty,
    # and there are one each for the embedding, 32 layers and the head.
    slim = MIXTRAL_LAYER + GIB // 8
    assert MIXTRAL_EMBEDDING > GIB // 8
    assert _count_gpus(mixtral, slim) == 35
    assert _count_gpus(mixtral, slim, largest=34) is None


def test_a_gpu_that_activations_fill_holds_nothing(mixtral: PreTrainedModel) -> None:
    assert _count_gpus(mixtral, 2 * GIB, activation_bytes=GIB, context_bytes=GIB) is None


def test_no_smaller_number_than_the_one_found_would_do() -> None:
    skeleton = build_family_skeleton("mixtral", num_hidden_layers=7)
    layer = _sum_tensors(skeleton.get_submodule("model.layers.0"))
    total = _sum_tensors(skeleton)
    sizes = {"cache_per_layer": layer // 2, "activation_bytes": layer // 3}
    for gpu_memory_bytes in range(layer, 3 * total, total // 9):
        found = _count_gpus(
            skeleton,
            gpu_memory_bytes,
            cache_bytes=7 * sizes["cache_per_layer"],
            activation_bytes=sizes["activation_bytes"],
            largest=12,
        )
        doing = [
            num_gpus
            for num_gpus in range(1, 13)
            if _has_room(skeleton, gpu_memory_bytes, num_gpus=num_gpus, **sizes)
        ]
        assert found == (doing[0] if doing else None)


def _has_room(
    skeleton: PreTrainedModel,
    gpu_memory_bytes: int,
    *,
    num_gpus: int,
    cache_per_layer: int,
    activation_bytes: int,
) -> bool:
    ranks = _share(skeleton, gpu_memory_bytes=gpu_memory_bytes, num_gpus=num_gpus)
    assert ranks.num_layers is not None
    return ranks.reason is None and all(
        weights + num * cache_per_layer + activation_bytes <= gpu_memory_bytes
        for weights, num in zip(ranks.weights_bytes, ranks.num_layers, strict=True)
    )


def test_nobody_is_warned_of_gpus_that_this_machine_lacks(
    mixtral: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("accelerate.utils.modeling")
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, logger=logger.name):
        _share(mixtral, gpu_memory_bytes=48 * GIB, num_gpus=2)
        assert logger.level == logging.INFO
    assert not [record for record in caplog.records if record.name == logger.name]


def test_the_dtype_decides_how_many_layers_fit() -> None:
    bf16 = build_published_skeleton("mixtral-8x7b")
    fp32 = build_published_skeleton("mixtral-8x7b", dtype=torch.float32)
    ranks = [
        _share(skeleton, gpu_memory_bytes=48 * GIB, num_gpus=1).num_layers
        for skeleton in (bf16, fp32)
    ]
    assert ranks == [(16,), (7,)]
