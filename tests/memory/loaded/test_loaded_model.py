"""Models as scenarios load them, each of them once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moetool.memory.answers.figures import Basis
from moetool.memory.scenario import Scenario, Task
from moetool.quantizing.kinds import Quantization
from tests.memory.saved_configs import make_loader, save_config

SCENARIO = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=6, dtype="float32")
GPTQ = {"quant_method": "gptq", "bits": 4}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
MXFP4 = {"quant_method": "mxfp4"}


def test_sizes_share_a_model_and_what_is_loaded_otherwise_does_not(tmp_path: Path) -> None:
    loader = make_loader(save_config("olmoe", tmp_path))
    model = loader.load(SCENARIO)
    sized = replace(SCENARIO, batch_size=3, num_prompt_tokens=5, num_new_tokens=7, has_padding=True)
    assert loader.load(sized) is model
    for other in (
        replace(SCENARIO, dtype="bfloat16"),
        replace(SCENARIO, attention="eager"),
        replace(SCENARIO, experts_implementation="batched_mm"),
        replace(SCENARIO, quantization=Quantization.NF4),
    ):
        assert loader.load(other).skeleton is not model.skeleton
        assert loader.load_plain(replace(SCENARIO, quantization=Quantization.NF4)) is model


def test_a_copy_in_the_published_dtype_shares_the_skeleton_and_is_as_if_built_anew(
    tmp_path: Path,
) -> None:
    path = save_config("mixtral", tmp_path, dtype="bfloat16", quantization_config=FP8)
    published, copied = replace(SCENARIO, dtype="auto"), replace(SCENARIO, dtype="bfloat16")
    loader = make_loader(path)
    first, copy = loader.load(published), loader.load(copied)
    alone = make_loader(path).load(copied)
    assert first.packed is not None
    assert copy.skeleton is copy.held is copy.simulated is first.skeleton
    assert copy.packed is alone.packed is None
    assert copy.stored == alone.stored
    assert copy.stored_notes == alone.stored_notes
    assert copy.older == alone.older
    layouts = [
        [(name, each.shape, each.dtype) for name, each in model.held.state_dict().items()]
        for model in (copy, alone)
        if model.held is not None
    ]
    assert layouts[0] == layouts[1]
    assert loader.load(SCENARIO).skeleton is not first.skeleton


def test_plain_weights_are_held_as_they_are_simulated(tmp_path: Path) -> None:
    model = make_loader(save_config("olmoe", tmp_path)).load(SCENARIO)
    assert model.held is model.skeleton
    assert model.runs_in_full_precision
    assert model.count_held_bytes(simulated_bytes=123) == 123
    assert model.note_stored("auto") == []


@pytest.mark.parametrize(
    ("stated", "dtype", "basis", "words"),
    [
        (GPTQ, "auto", Basis.UNKNOWN, "their size on a GPU is unknown"),
        (GPTQ, "bfloat16", Basis.COPY, "these figures are for a copy in bfloat16"),
        (MXFP4, "auto", Basis.PUBLISHED, "count as they are published, packed in mxfp4"),
    ],
)
def test_it_is_said_what_the_figures_make_of_stored_weights(
    stated: dict[str, object], dtype: str, basis: Basis, words: str, tmp_path: Path
) -> None:
    path = save_config("gpt_oss", tmp_path, dtype="bfloat16", quantization_config=stated)
    model = make_loader(path).load(replace(SCENARIO, dtype=dtype))
    assert model.stored is not None
    assert model.stored.basis is basis
    assert model.runs_in_full_precision == (basis is Basis.COPY)
    assert (model.held is None) == (basis is Basis.UNKNOWN)
    (note,) = model.note_stored(dtype)
    assert words in note


def test_weights_that_are_dequantized_for_a_trace_are_not_for_generation(tmp_path: Path) -> None:
    path = save_config("gpt_oss", tmp_path, dtype="bfloat16", quantization_config=MXFP4)
    auto = replace(SCENARIO, dtype="auto")
    loader = make_loader(path)
    generated, traced = (
        loader.load(replace(auto, task=task)) for task in (Task.GENERATE, Task.TRACE)
    )
    assert not generated.runs_in_full_precision
    assert traced.runs_in_full_precision
    assert traced.held is traced.skeleton
    assert generated.held is not generated.skeleton
    (note,) = traced.note_stored("auto")
    assert "dequantized on loading" in note


def test_stored_weights_do_not_depend_on_what_was_loaded_before() -> None:
    loader, fresh = make_loader("qwen3-30b-a3b-fp8"), make_loader("qwen3-30b-a3b-fp8")
    before = loader.load(SCENARIO).stored
    auto = replace(SCENARIO, dtype="auto")
    assert loader.load(auto).stored == fresh.load(auto).stored
    assert before != loader.load(auto).stored
