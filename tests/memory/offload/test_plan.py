from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from accelerate.utils.modeling import check_device_map
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.catalogue.gpus import Gpu, find_gpu
from moetool.memory.answers.on_gpus import Offload
from moetool.memory.offload.expert_bytes import list_layer_experts
from moetool.memory.offload.offload_maps import make_offload_map, write_offload_map
from moetool.memory.offload.plan import plan_offload
from moetool.memory.speed.experts_touched import find_choices
from moetool.quantizing.kinds import Quantization
from tests.families.tiny.configs import build_config
from tests.memory.published_skeletons import build_published_skeleton
from tests.simulation.skeletons import build_family_skeleton

GIB = 2**30
MIXTRAL_EXPERTS = 8 * 3 * 4096 * 14336 * 2
DEEPSEEK_EXPERTS = 256 * 3 * 7168 * 2048 * 2


@pytest.fixture(scope="module")
def mixtral() -> PreTrainedModel:
    return build_published_skeleton("mixtral-8x7b")


@pytest.fixture(scope="module")
def deepseek() -> PreTrainedModel:
    return build_published_skeleton("deepseek-v3")


def _plan(
    skeleton: PreTrainedModel,
    gpu: Gpu,
    *,
    total_bytes: int,
    batch_size: int = 1,
    quantization: Quantization = Quantization.NONE,
) -> Offload:
    offload = plan_offload(
        RoutedSkeleton.of(skeleton),
        gpu_memory_bytes=gpu.memory_bytes,
        total_bytes=total_bytes,
        batch_size=batch_size,
        choices=find_choices(RoutedSkeleton.of(skeleton)),
        quantization=quantization,
    )
    assert offload is not None
    return offload


def _read_map(offload: Offload) -> dict[str, int | str]:
    device_map = eval(offload.flags["transformers"].removeprefix("device_map="))
    assert isinstance(device_map, dict)
    return device_map


def test_all_experts_of_published_models_are_as_large_as_known(
    mixtral: PreTrainedModel, deepseek: PreTrainedModel
) -> None:
    assert MIXTRAL_EXPERTS == 2.625 * GIB
    assert DEEPSEEK_EXPERTS == 21 * GIB
    for skeleton, num_bytes, others_gib in (
        (mixtral, MIXTRAL_EXPERTS, 2.99),
        (deepseek, DEEPSEEK_EXPERTS, 31.9),
    ):
        experts = list_layer_experts(RoutedSkeleton.of(skeleton))
        assert {layer.num_bytes for layer in experts} == {num_bytes}
        assert {layer.moved_bytes for layer in experts} == {num_bytes}
        tensors = (*skeleton.parameters(), *skeleton.buffers())
        others = sum(t.nbytes for t in tensors) - len(experts) * num_bytes
        # Since transformers 5.24 DeepSeek's routers stay in float32: twice what is known.
        routers = [t for path, t in skeleton.named_parameters() if path.endswith("mlp.gate.weight")]
        others -= sum(t.nbytes // 2 for t in routers if t.dtype is torch.float32)
        assert others / GIB == pytest.approx(others_gib, abs=0.05)


def test_nothing_leaves_a_gpu_that_holds_everything(mixtral: PreTrainedModel) -> None:
    offload = _plan(mixtral, find_gpu("90GiB"), total_bytes=90 * GIB)
    assert offload == Offload(
        num_offloaded_layers=0,
        num_moe_layers=32,
        gpu_bytes=90 * GIB,
        host_bytes=0,
        transfer_bytes_per_token=0,
        computed_on_host_bytes_per_token=0,
        flags={},
        fits=True,
        num_host_computed_layers=0,
        fits_computed_on_host=True,
    )


def test_mixtral_on_24_gib_is_as_by_hand(mixtral: PreTrainedModel) -> None:
    offload = _plan(mixtral, find_gpu("24GiB"), total_bytes=90 * GIB, batch_size=4)
    # 66 GiB have to go: 26 layers' experts are 68.25 GiB, of which 2.625 come back.
    assert offload.num_offloaded_layers == 27
    assert offload.gpu_bytes == 90 * GIB - 26 * MIXTRAL_EXPERTS
    assert offload.host_bytes == 27 * MIXTRAL_EXPERTS
    assert offload.fits
    # Every step moves all experts; its four tokens share that.
    assert offload.transfer_bytes_per_token == 27 * MIXTRAL_EXPERTS // 4
    # On the host, each token reads two of the eight, whatever the batch.
    assert offload.num_host_computed_layers == 26
    assert offload.computed_on_host_bytes_per_token == 26 * MIXTRAL_EXPERTS // 4
    assert offload.fits_computed_on_host


def test_the_fewest_layers_go(mixtral: PreTrainedModel) -> None:
    exactly = 90 * GIB - 3 * MIXTRAL_EXPERTS
    fitting = _plan(mixtral, find_gpu(f"{exactly}B"), total_bytes=90 * GIB)
    assert (fitting.num_offloaded_layers, fitting.gpu_bytes) == (4, exactly)
    assert fitting.num_host_computed_layers == 3
    less = _plan(mixtral, find_gpu(f"{exactly - 1}B"), total_bytes=90 * GIB)
    assert (less.num_offloaded_layers, less.num_host_computed_layers) == (5, 4)


def test_one_layer_gone_frees_nothing_while_it_is_at_work(mixtral: PreTrainedModel) -> None:
    offload = _plan(mixtral, find_gpu("90GiB"), total_bytes=90 * GIB + 1)
    assert offload.num_offloaded_layers == 2
    assert offload.num_host_computed_layers == 1


def test_deepseek_v3_needs_no_room_for_experts_where_the_host_computes(
    deepseek: PreTrainedModel,
) -> None:
    # 31.9 GiB in addition to the experts, 2 GiB at the peak; transformers moves 21 GiB there.
    total_bytes = 58 * DEEPSEEK_EXPERTS + 34 * GIB
    offload = _plan(deepseek, find_gpu("48GiB"), total_bytes=total_bytes)
    assert not offload.fits
    assert offload.gpu_bytes == 55 * GIB
    assert offload.num_offloaded_layers == offload.num_moe_layers == 58
    assert offload.host_bytes == 58 * DEEPSEEK_EXPERTS
    assert offload.fits_computed_on_host
    assert offload.num_host_computed_layers == 58
    assert offload.computed_on_host_bytes_per_token == 58 * DEEPSEEK_EXPERTS * 8 // 256
    # The first three layers have no experts; llama.cpp counts them all the same.
    assert offload.flags["llama.cpp"] == "-ngl 999 --n-cpu-moe 61"
    assert "transformers" not in offload.flags


def test_a_gpu_too_small_for_all_else_gets_no_flags(mixtral: PreTrainedModel) -> None:
    offload = _plan(mixtral, find_gpu("2GiB"), total_bytes=90 * GIB)
    assert not offload.fits
    assert not offload.fits_computed_on_host
    assert offload.flags == {}
    assert offload.num_offloaded_layers == offload.num_host_computed_layers == 32


def test_the_last_layers_experts_go_first_with_transformers(mixtral: PreTrainedModel) -> None:
    gpu = find_gpu(f"{90 * GIB - 2 * MIXTRAL_EXPERTS}B")
    device_map = _read_map(_plan(mixtral, gpu, total_bytes=90 * GIB))
    on_host = [path for path, device in device_map.items() if device == "cpu"]
    assert on_host == [f"model.layers.{n}.mlp.experts" for n in (29, 30, 31)]
    assert device_map["model.layers.28"] == device_map["model.layers.29.self_attn"] == 0
    assert "" not in device_map
    assert "model.layers.29" not in device_map


def test_the_first_layers_experts_stay_on_the_host_with_llama_cpp(
    mixtral: PreTrainedModel,
) -> None:
    gpu = find_gpu(f"{90 * GIB - 12 * MIXTRAL_EXPERTS}B")
    flags = _plan(mixtral, gpu, total_bytes=90 * GIB).flags
    assert flags["llama.cpp"] == "-ngl 999 --n-cpu-moe 12"
    by_name = re.fullmatch(r'-ngl 999 -ot "(.*)=CPU"', flags["llama.cpp (-ot)"])
    assert by_name is not None
    assert "," not in by_name[1]
    tensors = [
        f"blk.{n}.{name}"
        for n in range(32)
        for name in ("ffn_up_exps.weight", "ffn_gate_exps.weight", "ffn_gate_inp.weight")
    ]
    found = [name for name in tensors if re.search(by_name[1], name)]
    assert found == [name for name in tensors if "_exps" in name][:24]


def test_bitsandbytes_gets_the_option_to_accept_the_host(mixtral: PreTrainedModel) -> None:
    gpu = find_gpu("24GiB")
    flags = _plan(mixtral, gpu, total_bytes=90 * GIB, quantization=Quantization.NF4).flags[
        "transformers"
    ]
    assert flags.endswith("in BitsAndBytesConfig: llm_int8_enable_fp32_cpu_offload=True")


def test_a_dense_model_has_no_experts_to_move() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    dense = AutoModelForCausalLM.from_config(config)
    offload = plan_offload(
        RoutedSkeleton.of(dense),
        gpu_memory_bytes=24 * GIB,
        total_bytes=90 * GIB,
        batch_size=1,
        choices={},
    )
    assert offload is None


def test_unknown_choices_leave_what_a_token_reads_unknown(mixtral: PreTrainedModel) -> None:
    offload = plan_offload(
        RoutedSkeleton.of(mixtral),
        gpu_memory_bytes=24 * GIB,
        total_bytes=90 * GIB,
        batch_size=1,
        choices=None,
    )
    assert offload is not None
    assert offload.computed_on_host_bytes_per_token is None
    assert offload.transfer_bytes_per_token == 27 * MIXTRAL_EXPERTS


@pytest.mark.parametrize(("batch_size", "num_moved"), [(1, 2), (2, 4), (3, 6), (4, 8), (100, 8)])
def test_only_chosen_experts_move_where_each_is_a_module(batch_size: int, num_moved: int) -> None:
    skeleton = build_family_skeleton("nllb-moe")
    experts = list_layer_experts(RoutedSkeleton.of(skeleton))
    assert all(layer.are_separate for layer in experts)
    # Two biased matrices, one after the other, in float32.
    one_expert = 4 * (2 * 64 * 96 + 64 + 96)
    assert {layer.num_bytes for layer in experts} == {8 * one_expert}
    assert {layer.moved_bytes for layer in experts} <= {4 * (64 * 96 + 96), 4 * (64 * 96 + 64)}
    total = len(experts) * 8 * one_expert + GIB
    gpu = find_gpu(f"{GIB + 4 * (64 * 96 + 96)}B")
    offload = _plan(skeleton, gpu, total_bytes=total, batch_size=batch_size)
    assert offload.fits
    assert offload.num_offloaded_layers == len(experts)
    moved = len(experts) * num_moved * one_expert
    assert offload.transfer_bytes_per_token == -(-moved // batch_size)
    # Its layers are in two stacks, which llama.cpp has no flag for.
    assert set(offload.flags) == {"transformers"}


def test_experts_that_share_their_block_with_the_router_are_named_one_by_one() -> None:
    skeleton = build_family_skeleton("jetmoe")
    attention, mlp = list_layer_experts(RoutedSkeleton.of(skeleton))[:2]
    assert all(path.startswith(attention.layer.block_path) for path in attention.paths)
    named = {name for path in mlp.paths for name, _ in skeleton.get_submodule(path).named_modules()}
    assert len(mlp.paths) == 2
    assert not any("router" in name for name in (*mlp.paths, *named))
    device_map = make_offload_map(skeleton, on_host=mlp.paths)
    assert [path for path, device in device_map.items() if device == "cpu"] == list(mlp.paths)


@pytest.mark.parametrize(
    "family",
    ["mixtral", "deepseek_v3", "gemma4", "gpt_oss", "jetmoe", "llama4", "nllb-moe", "nemotron_h"],
)
@pytest.mark.parametrize("num_layers", [1, 2, 99])
def test_accelerate_accepts_the_map_and_it_places_all_else_on_the_gpu(
    family: str, num_layers: int
) -> None:
    skeleton = build_family_skeleton(family)
    taken = list_layer_experts(RoutedSkeleton.of(skeleton))[::-1][:num_layers]
    on_host = {path for layer in taken for path in layer.paths}
    device_map = make_offload_map(skeleton, on_host=on_host)
    with warnings.catch_warnings():
        # Parameters of modules that are split are named, too, which accelerate wonders about.
        warnings.simplefilter("ignore", UserWarning)
        check_device_map(skeleton, device_map)
    assert {path for path, device in device_map.items() if device == "cpu"} == on_host
    parameters = skeleton.named_parameters(remove_duplicate=False)
    tensors = [name for name, _ in (*parameters, *skeleton.named_buffers())]
    for path in device_map:
        assert any(f"{name}.".startswith(f"{path}.") for name in tensors)
        assert not any(host.startswith(f"{path}.") for host in on_host)
    assert eval(write_offload_map(device_map)) == device_map


def test_experts_of_images_stay_where_they_are() -> None:
    experts = list_layer_experts(RoutedSkeleton.of(build_family_skeleton("dots3_note")))
    assert experts
    assert not [layer for layer in experts if "vision" in layer.layer.experts_path]


def test_what_repeats_is_written_as_a_loop() -> None:
    device_map: dict[str, int | str] = {
        "embed": 0,
        "layers.0": 0,
        "layers.1.attn": 0,
        "layers.1.norm": 0,
        "layers.1.experts": "cpu",
        "layers.2.attn": 0,
        "layers.2.norm": 0,
        "layers.2.experts": "cpu",
        "layers.4": 0,
    }
    written = write_offload_map(device_map)
    assert written == (
        '{"embed": 0, '
        '**{f"layers.{n}": 0 for n in (0, 4)}, '
        '**{f"layers.{n}{part}": 0 for n in range(1, 3) for part in (".attn", ".norm")}, '
        '**{f"layers.{n}.experts": "cpu" for n in range(1, 3)}}'
    )
    assert eval(written) == device_map


def test_a_map_of_a_large_model_is_short_enough_to_copy(deepseek: PreTrainedModel) -> None:
    on_host = {
        path for layer in list_layer_experts(RoutedSkeleton.of(deepseek)) for path in layer.paths
    }
    device_map = make_offload_map(deepseek, on_host=on_host)
    written = write_offload_map(device_map)
    assert eval(written) == device_map
    assert len(written) < 700


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "jetmoe"])
def test_transformers_runs_a_model_loaded_with_the_map(family: str, tmp_path: Path) -> None:
    # Without a GPU, the processor is the GPU and the disk is the host: the hooks are the same.
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(build_config(family)).save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    taken = list_layer_experts(RoutedSkeleton.of(build_family_skeleton(family)))[-2:]
    on_host = {path for layer in taken for path in layer.paths}
    device_map = make_offload_map(build_family_skeleton(family), on_host=on_host)
    stand_ins = {path: "disk" if device == "cpu" else "cpu" for path, device in device_map.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map=stand_ins, offload_folder=tmp_path / "disk"
        ).eval()
    gone = {path for path, p in loaded.named_parameters() if p.device.type == "meta"}
    assert gone
    assert {path.rpartition(".")[0] for path in gone} == {
        holder for path in gone for holder in on_host if path.startswith(f"{holder}.")
    }
    tokens = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
