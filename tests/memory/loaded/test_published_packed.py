"""Checkpoints in formats that other libraries lay out: no verdict rests on weights that nobody loads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from moetool import Scenario, estimate_memory, inspect_model
from moetool.catalogue.published import read_published_models
from moetool.errors import UsageError
from moetool.memory.answers.figures import Basis, Method
from moetool.memory.result import Estimate
from moetool.memory.scenario import Task
from moetool.quantizing.kinds import Quantization
from moetool.report.memory.data import RENDERERS, render_csv, render_json, render_table_text
from moetool.report.renderer import ReportFormat, View
from tests.memory.loaded.packed_checkpoints import FORMATS, NUM_LAYERS, count_packed, save_packed
from tests.memory.saved_configs import make_loader, save_config

SCENARIO = Scenario(batch_size=1, num_prompt_tokens=16, num_new_tokens=3)
# Little more than CUDA and the tiny models take, so that the search for the largest batch ends soon.
SMALL_GPU = "750MiB"
LOADED_BY_A_LIBRARY = ("awq", "gptq")
NOT_LOADED_AS_THEY_ARE = tuple(name for name in FORMATS if name not in LOADED_BY_A_LIBRARY)
EXTRA = {"model.mtp.0.proj.weight": ("F16", [1024, 1024])}


@pytest.fixture(scope="module")
def estimate_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Estimate]:
    """Estimates of formats for a GPU, each made once."""

    @cache
    def estimate(name: str) -> Estimate:
        folder = tmp_path_factory.mktemp("packed")
        (found,) = estimate_memory(save_packed(name, folder), [SCENARIO], gpu=SMALL_GPU)
        return found

    return estimate


def read_row(estimate: Estimate) -> dict[str, str]:
    (row,) = csv.DictReader(io.StringIO(render_csv([estimate])))
    return row


@pytest.mark.parametrize("name", LOADED_BY_A_LIBRARY)
def test_the_verdict_rests_on_the_packed_bytes_and_says_so(
    name: str, estimate_of: Callable[[str], Estimate]
) -> None:
    estimate = estimate_of(name)
    figures, stored = estimate.figures, estimate.stored
    assert stored is not None
    assert stored.basis is Basis.PUBLISHED
    assert figures.weights_bytes == stored.packed_bytes == stored.stored_bytes == count_packed(name)
    assert estimate.method is Method.APPROXIMATE
    assert estimate.at_peak is not None
    assert estimate.at_peak.allocated_bytes == figures.peak_allocated_bytes
    assert figures == estimate.variants["as_published"]
    verdict = " ".join(render_table_text([estimate]).split("\n\n")[0].split())
    assert f"packed as published, in {name}," in verdict
    assert "With its weights dequantized it needs" in verdict
    assert any("the library behind" in note for note in estimate.notes)
    assert read_row(estimate)["weights_bytes"] == str(count_packed(name))
    assert read_row(estimate)["weights_basis"] == "as-published"


@pytest.mark.parametrize("name", NOT_LOADED_AS_THEY_ARE)
def test_without_a_way_to_load_it_nothing_is_claimed(
    name: str, estimate_of: Callable[[str], Estimate]
) -> None:
    estimate = estimate_of(name)
    figures, stored = estimate.figures, estimate.stored
    assert stored is not None
    assert stored.basis is Basis.UNKNOWN
    assert stored.reason is not None
    unknown = (figures.weights_bytes, figures.peak_allocated_bytes, figures.peak_reserved_bytes)
    assert {*unknown, figures.total_device_bytes} == {None}
    assert figures.cache_bytes
    assert {fit.fits for fit in estimate.fits} == {None}
    assert (estimate.limits, estimate.offload, estimate.speed, estimate.ranks) == (
        None,
        None,
        None,
        (),
    )
    packed, plain = estimate.variants["as_published"], estimate.variants["dequantized"]
    assert packed.weights_bytes == count_packed(name)
    assert plain.weights_bytes == stored.dequantized_bytes
    text = render_table_text([estimate])
    verdict = " ".join(text.split("\n\n")[0].split())
    assert verdict.startswith(f"The memory that {estimate.model} needs is unknown: {stored.reason}")
    assert "fit" not in verdict
    assert max(map(len, text.splitlines())) <= 80
    (value,) = json.loads(render_json([estimate]))["estimates"]
    assert (value["weights_bytes"], value["total_device_bytes"]) == (None, None)
    assert value["at_peak"]["weights_bytes"] is None
    assert value["stored"]["reason"] == stored.reason
    row = read_row(estimate)
    assert (row["weights_bytes"], row["total_device_bytes"]) == ("", "")
    assert row["weights_basis"] == "unknown"


@pytest.mark.parametrize("name", FORMATS)
def test_packed_and_dequantized_differ_in_their_weights_alone(
    name: str, estimate_of: Callable[[str], Estimate]
) -> None:
    estimate = estimate_of(name)
    packed, plain = estimate.variants["as_published"], estimate.variants["dequantized"]
    assert packed.weights_bytes is not None
    assert plain.weights_bytes is not None
    assert packed.total_device_bytes is not None
    assert plain.total_device_bytes is not None
    shift = plain.weights_bytes - packed.weights_bytes
    assert shift > 0
    assert plain.total_device_bytes - packed.total_device_bytes == shift
    assert packed.cache_bytes == plain.cache_bytes


@pytest.mark.parametrize("name", FORMATS)
def test_inspect_and_memory_estimate_count_the_same_bytes(name: str, tmp_path: Path) -> None:
    (estimate,) = estimate_memory(save_packed(name, tmp_path), [SCENARIO])
    inspected = inspect_model(estimate.model)
    stored, parameters = estimate.stored, inspected.parameters
    assert stored is not None
    assert parameters is not None
    assert parameters.num_bytes is not None
    assert inspected.files is not None
    assert sum(inspected.files.dtype_bytes.values()) == stored.stored_bytes
    assert inspected.quantization == stored.method
    assert stored.dequantized_bytes is not None
    # The estimate adds buffers, and rounds to the allocator's blocks.
    assert 0 <= stored.dequantized_bytes - parameters.num_bytes < 64 * 512


def test_what_the_model_does_not_build_is_not_held(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    more, plain = (
        make_loader(save_packed("awq", folder, **options)).load(SCENARIO).stored
        for folder, options in ((tmp_path / "more", {"more": EXTRA}), (tmp_path, {}))
    )
    assert more is not None
    assert plain is not None
    assert more.stored_bytes == (plain.stored_bytes or 0) + 2 * 1024**2
    assert more.packed_bytes == plain.packed_bytes


def test_files_that_lack_layers_leave_the_size_unknown(tmp_path: Path) -> None:
    folder = save_packed("awq", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = NUM_LAYERS + 1
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (estimate,) = estimate_memory(folder, [SCENARIO])
    assert estimate.stored is not None
    assert (estimate.stored.packed_bytes, estimate.stored.basis) == (None, Basis.UNKNOWN)
    assert estimate.figures.total_device_bytes is None


@pytest.mark.parametrize("name", FORMATS)
def test_no_packed_checkpoint_is_quantized_again(name: str, tmp_path: Path) -> None:
    folder = save_packed(name, tmp_path)
    nf4 = Scenario(num_prompt_tokens=16, num_new_tokens=3, quantization=Quantization.NF4)
    with pytest.raises(UsageError, match="quantized already"):
        estimate_memory(folder, [nf4])


@pytest.mark.parametrize("name", FORMATS)
def test_with_a_dtype_named_the_figures_are_of_a_copy(name: str, tmp_path: Path) -> None:
    named = Scenario(num_prompt_tokens=16, num_new_tokens=3, dtype="bfloat16")
    (estimate,) = estimate_memory(save_packed(name, tmp_path), [named], gpu=SMALL_GPU)
    assert estimate.stored is not None
    assert estimate.stored.basis is Basis.COPY
    assert estimate.variants == {}
    assert estimate.fit is not None
    assert estimate.fit.fits is True
    assert any("for a copy in bfloat16" in note for note in estimate.notes)


@pytest.mark.parametrize("name", FORMATS)
def test_random_plain_weights_do_not_stand_for_packed_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="published quantized") as caught:
        estimate_memory(save_packed(name, tmp_path), [SCENARIO], measure=True)
    assert "--dtype bfloat16" in caught.value.hint


@pytest.mark.parametrize("form", RENDERERS)
def test_several_are_rendered_with_what_is_unknown(
    form: ReportFormat, estimate_of: Callable[[str], Estimate]
) -> None:
    estimates = [estimate_of(name) for name in ("awq", "mlx")]
    text = RENDERERS[form](estimates, View(width=80))
    if form == "table":
        assert text.startswith(
            f"1 of 1 fit on 1 × {SMALL_GPU}.\nMemory unknown for 1 of 2 estimates"
        )
        assert max(map(len, text.splitlines())) <= 80


# Published models.


def test_gpt_oss_is_answered_by_default_and_fits_where_it_is_published_to() -> None:
    short = Scenario(num_prompt_tokens=128, num_new_tokens=2)
    (estimate,) = estimate_memory("gpt-oss-20b", [short], gpu="16GiB")
    assert estimate.fit is not None
    assert estimate.fit.fits is True
    (other,) = estimate.fits_dequantized
    assert other.fits is False
    weights = {name: each.weights_bytes for name, each in estimate.variants.items()}
    assert 12.8 < (weights["as_published"] or 0) / 2**30 < 12.9
    assert 38.9 < (weights["dequantized"] or 0) / 2**30 < 39.1
    assert any("transformers' own modules for such weights" in note for note in estimate.notes)


def test_mxfp4_is_traced_in_bfloat16(tmp_path: Path) -> None:
    model = save_config("gpt_oss", tmp_path, quantization_config={"quant_method": "mxfp4"})
    traced, generated = (
        Scenario(task=task, num_prompt_tokens=8, num_new_tokens=2)
        for task in (Task.TRACE, Task.GENERATE)
    )
    trace, generate = estimate_memory(model, [traced, generated], gpu=SMALL_GPU)
    assert trace.figures == trace.variants["dequantized"]
    assert generate.figures == generate.variants["as_published"]
    assert trace.fits_dequantized == ()
    assert [fit.fits for fit in generate.fits_dequantized] == [True]


def test_a_long_prompt_of_eager_attention_says_what_makes_its_peak(tmp_path: Path) -> None:
    model = save_config("gpt_oss", tmp_path, max_position_embeddings=4096)
    short, long = (
        Scenario(num_prompt_tokens=number, num_new_tokens=2, dtype="float32")
        for number in (4, 2048)
    )
    estimates = estimate_memory(model, [short, long])
    said = [[note for note in each.notes if "Eager attention" in note] for each in estimates]
    assert said[0] == []
    (note,) = said[1]
    # Four heads' scores in 4 bytes.
    assert "2,048 × 2,048" in note
    assert "64 MiB" in note


@pytest.mark.parametrize(
    "name", [name for name, model in read_published_models().items() if model.stored_as]
)
def test_files_that_the_catalogue_knows_to_be_quantized_are_not_taken_for_bfloat16(
    name: str,
) -> None:
    short = Scenario(num_prompt_tokens=16, num_new_tokens=2)
    (estimate,) = estimate_memory(name, [short], gpu="h200")
    assert estimate.figures.weights_bytes is None
    assert estimate.method is Method.APPROXIMATE
    assert estimate.variants["dequantized"].weights_bytes
    assert estimate.stored is not None
    assert estimate.stored.method == inspect_model(name).quantization
    with pytest.raises(UsageError, match="quantized already"):
        estimate_memory(name, [Scenario(quantization=Quantization.INT8)])
