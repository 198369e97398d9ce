"""GPUs on which transformers dequantizes what it keeps quantized on later ones."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.quantizers import quantizer_finegrained_fp8, quantizer_mxfp4

from moetool.catalogue.gpus import find_gpu
from moetool.memory.answers.implementation import DEQUANTIZED, PACKED
from moetool.memory.fitting.fits import list_fits_everywhere
from moetool.memory.loaded.formats_of_transformers import find_fp8, find_mxfp4
from moetool.memory.loaded.loaded_format import LoadedFormat, OlderGpus
from moetool.memory.scenario import Scenario
from tests.memory.saved_configs import make_runs, save_config
from tests.simulation.skeletons import build_family_skeleton

CAPABILITIES = ((7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0))
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
SHORT = Scenario(num_prompt_tokens=16, num_new_tokens=2)


def ask_quantizer(
    monkeypatch: pytest.MonkeyPatch, module: Any, quantizer: Any, capability: tuple[int, int]
) -> bool:
    """Return whether transformers' quantizer decides to dequantize on a GPU."""
    cuda: Any = torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "get_device_capability", lambda: capability)
    if hasattr(module, "get_current_accelerator"):
        monkeypatch.setattr(module, "get_current_accelerator", lambda: torch.device("cuda"))
    quantizer.validate_environment(device_map="auto")
    dequantizes: bool = quantizer.quantization_config.dequantize
    return dequantizes


def find_way(found: LoadedFormat, *, packages: set[str]) -> str | None:
    """Return what the implementation holds that runs with some packages."""
    for way in found.implementations:
        needed = {name.partition(">")[0] for name in way.with_packages}
        lacking = set(way.without_packages)
        if needed <= packages and not (lacking and lacking <= packages):
            return way.holds
    return None


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_mxfp4_is_dequantized_where_transformers_quantizer_does_it(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = build_family_skeleton("gpt_oss")
    found = find_mxfp4(
        {"quant_method": "mxfp4"}, skeleton, compute_capability=capability, is_traced=False
    )
    make_config: Any = vars(transformers.utils.quantization_config)["Mxfp4Config"]
    for has_kernels, has_triton in itertools.product((False, True), repeat=2):
        packages = {"accelerate"}
        packages |= {"kernels"} if has_kernels else set()
        packages |= {"triton"} if has_triton else set()
        module: Any = quantizer_mxfp4
        monkeypatch.setattr(module, "is_kernels_available", lambda has=has_kernels: has)
        monkeypatch.setattr(module, "is_triton_available", lambda _, has=has_triton: has)
        quantizer = module.Mxfp4HfQuantizer(make_config(), pre_quantized=True)
        dequantizes = ask_quantizer(monkeypatch, module, quantizer, capability)
        assert find_way(found, packages=packages) == (DEQUANTIZED if dequantizes else PACKED)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_fp8_is_dequantized_where_transformers_quantizer_does_it(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_fp8(FP8, build_family_skeleton("mixtral"), compute_capability=capability)
    module: Any = quantizer_finegrained_fp8
    make_config: Any = transformers.FineGrainedFP8Config
    quantizer = module.FineGrainedFP8HfQuantizer(make_config(), pre_quantized=True)
    assert ask_quantizer(monkeypatch, module, quantizer, capability) is found.is_dequantized
    assert (found.older is None) is found.is_dequantized


@pytest.mark.parametrize(
    ("family", "stated", "last_old", "first_new"),
    [
        ("mixtral", FP8, "a100-80gb", "l40s"),
        ("gpt_oss", {"quant_method": "mxfp4"}, "v100-32gb", "t4"),
    ],
)
def test_rows_of_older_gpus_are_for_dequantized_weights(
    family: str, stated: dict[str, Any], last_old: str, first_new: str, tmp_path: Path
) -> None:
    path = save_config(family, tmp_path, dtype="bfloat16", quantization_config=stated)
    runs = make_runs(path)
    fits = {fit.gpu: fit for fit in list_fits_everywhere(runs, SHORT, quantizations=[])[::3]}
    as_published, copy = (
        runs.run(each) for each in (SHORT, Scenario(**{**vars(SHORT), "dtype": "bfloat16"}))
    )
    assert as_published is not None
    assert copy is not None
    for gpu, run in ((last_old, copy), (first_new, as_published)):
        memory_bytes = find_gpu(gpu).memory_bytes
        assert fits[gpu].headroom_bytes == memory_bytes - run.figures.total_device_bytes
    assert copy.figures.weights_bytes > as_published.figures.weights_bytes


def test_weights_that_can_not_be_dequantized_fit_on_no_older_gpu(tmp_path: Path) -> None:
    fields = {"kv_lora_rank": 300, "dtype": "bfloat16", "quantization_config": FP8}
    runs = make_runs(save_config("deepseek_v3", tmp_path, **fields))
    older = runs.loader.load(SHORT).older
    assert older is not None
    assert "fails: it can't dequantize model.layers.0.self_attn.kv_a_proj" in older.note
    fits = {fit.gpu: fit for fit in list_fits_everywhere(runs, SHORT, quantizations=[])[::3]}
    assert (fits["a100-80gb"].fits, fits["a100-80gb"].headroom_bytes) == (False, None)
    assert fits["h100"].fits


def test_a_note_says_which_gpus_those_are() -> None:
    assert OlderGpus((8, 9)).note.startswith("On GPUs before compute capability 8.9 ")
    assert [OlderGpus((8, 9)).include(each) for each in ((8, 6), (8, 9), None)] == [
        True,
        False,
        False,
    ]
