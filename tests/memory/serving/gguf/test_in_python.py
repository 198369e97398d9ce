"""Estimates for GGUF files, asked for from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import moetool
from moetool.checkpoint.reference import resolve_model
from moetool.errors import UsageError
from moetool.memory.scenario import Scenario
from moetool.memory.serving.answer import Engine, ServingOptions
from moetool.memory.serving.gguf.result import GgufEstimate
from moetool.plain import to_frame
from moetool.report.figures.memory import draw_memory
from tests.checkpoint.gguf.writer import moe_metadata, moe_tensors, write_gguf
from tests.command import RunMoetool

FLAGS = {
    "n_gpu_layers": 4,
    "n_cpu_moe": 2,
    "override_tensor": r"blk\.3\.ffn_up_exps=CPU",
    "ctx_size": 2048,
    "ubatch_size": 256,
    "cache_type_k": "q8_0",
    "cache_type_v": "bf16",
    "flash_attn": "on",
    "tensor_split": "3,1",
    "engine_overhead": "1MiB",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata, tensors = moe_metadata(block_count=6), moe_tensors(num_layers=6)
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", metadata, tensors)


def test_the_answer_is_the_command_s(path: Path, run_moetool: RunMoetool) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    arguments = ("memory-estimate", path, *words, "--gpu", "2x1GiB", "--batch-size", 2)
    asked = run_moetool(*map(str, arguments), "--format", "json")
    options: dict[str, Any] = dict(FLAGS)
    found = moetool.estimate_memory(path, [Scenario(batch_size=2)], gpu="2x1GiB", **options)
    assert [each.to_dict() for each in found] == json.loads(asked.stdout)["estimates"]
    (estimate,) = found
    assert isinstance(estimate, GgufEstimate)
    assert (estimate.num_gpus, estimate.overhead_bytes) == (2, 2**20)
    assert f"<GgufEstimate {path}"[:40] in repr(estimate)


@pytest.mark.parametrize("name", [str, Path, resolve_model])
def test_a_file_may_be_named_in_any_way(path: Path, name: Any) -> None:
    (found,) = moetool.estimate_memory(name(path), ctx_size=2048)
    assert found.model == str(path)
    assert moetool.inspect_model(name(path)).top_k == 2


def test_each_scenario_has_a_row(path: Path) -> None:
    scenarios = [Scenario(batch_size=number) for number in (1, 4)]
    found = moetool.estimate_memory(path, scenarios, gpu="24GiB", ctx_size=4096)
    frame = to_frame(found)
    assert list(frame["num_sequences"]) == [1, 4]
    assert list(frame["gpu_bytes"]) == [each.to_dict()["gpu_bytes"] for each in found]
    assert all("fits" in repr(each) for each in found)


@pytest.mark.parametrize(
    "options",
    [
        {"measure": True},
        {"trust_remote_code": True},
        {"num_nodes": 2},
        {"parallel": "tensor", "gpu": "2xh200"},
        {"serving": ServingOptions(Engine.VLLM)},
        {"trace": "trace.parquet"},
        {"clipped_sizes": ["num_prompt_tokens"]},
        {"scenarios": [Scenario(num_prompt_tokens=8)]},
        {"scenarios": [Scenario(num_new_tokens=8)]},
        {"scenarios": [Scenario(has_padding=True)]},
    ],
)
def test_options_of_transformers_are_refused(path: Path, options: Any) -> None:
    with pytest.raises(UsageError, match="option is given that llama"):
        moetool.estimate_memory(path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"n_gpu_layers": "8"},
        {"n_cpu_moe": -1},
        {"ctx_size": 0},
        {"ubatch_size": True},
        {"override_tensor": 3},
        {"tensor_split": 1},
        {"cache_type_k": 8},
        {"flash_attn": True},
        {"engine_overhead": 5},
        {"gpu": 24},
    ],
)
def test_options_of_another_type_are_refused(path: Path, options: Any) -> None:
    with pytest.raises(UsageError) as caught:
        moetool.estimate_memory(path, **{"gpu": "24GiB"} | options)
    assert caught.value.hint


@pytest.mark.parametrize("name", FLAGS)
def test_other_models_do_not_take_them(name: str) -> None:
    options: dict[str, Any] = {name: FLAGS[name]}
    with pytest.raises(UsageError, match="no GGUF file is named"):
        moetool.estimate_memory("demo", **options)


def test_no_figure_and_no_receipt_is_made_of_them(path: Path, tmp_path: Path) -> None:
    found = moetool.estimate_memory(path, gpu="24GiB", ctx_size=2048)
    with pytest.raises(UsageError, match="a GGUF file has a context"):
        draw_memory(found)
    with pytest.raises(UsageError, match="nothing was measured"):
        moetool.save_receipts(found, tmp_path / "receipt.json")


def test_the_command_draws_none_either(path: Path, run_moetool: RunMoetool, tmp_path: Path) -> None:
    done = run_moetool("plot", "memory", path, "-o", tmp_path / "figure.svg")
    assert done.returncode == 2
    assert "a GGUF file has a context" in done.stderr
    assert not (tmp_path / "figure.svg").exists()
