"""GGUF models are inspected by their headers, and compared with a config.json next to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moetool.errors import InputError
from moetool.inspection.inspect import inspect_model
from moetool.inspection.result import Source
from tests.anatomy.gguf.converted import lay_down, read_converted
from tests.checkpoint.gguf.writer import moe_metadata, moe_tensors, write_gguf
from tests.command import RunMoetool


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = moe_metadata() | {
        "general.file_type": 15,
        "tokenizer.ggml.tokens": [f"word{number}" for number in range(1000)],
    }
    tensors = moe_tensors() | {"output.weight": ("q6_K", (1024, 256))}
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", metadata, tensors)


def test_facts_are_those_of_the_header(path: Path) -> None:
    found = inspect_model(path)
    assert found.source is Source.HEADERS
    assert (found.num_layers, found.num_moe_layers, found.num_experts) == (2, 2, 8)
    assert (found.top_k, found.num_shared_experts, found.context_length) == (2, 0, 4096)
    assert found.quantization == "GGUF Q4_K_M"
    assert found.gguf is not None
    assert found.gguf.vocab_size == 1024
    assert found.gguf.num_tokens == 1000
    assert any("24 rows more than the tokenizer" in note for note in found.notes)
    assert found.parameters is not None
    assert found.parameters.total is not None
    types = found.gguf.types
    assert [each.type for each in types] == ["q4_K", "q6_K", "f32"]
    assert sum(each.num_elements for each in types) == found.parameters.total
    num_bits = 8 * sum(each.num_bytes for each in types)
    assert found.gguf.bits_per_weight == pytest.approx(num_bits / found.parameters.total)
    assert [each.bits_per_weight for each in types] == [4.5, 6.5625, 32]


def test_a_config_next_to_it_is_compared(tmp_path: Path) -> None:
    line = read_converted()["glm4v_moe"]
    path = lay_down(line, tmp_path / "model.gguf")
    alone = inspect_model(path)
    (tmp_path / "config.json").write_text(json.dumps(line["config"]))
    both = inspect_model(path)
    assert both.source is Source.BOTH
    assert both.parameters is not None
    assert alone.parameters is not None
    assert both.files is not None
    assert both.files.differences is not None
    surplus: dict[str, int] = {}
    for difference in both.files.differences:
        for name, number in difference.components.items():
            surplus[name] = surplus.get(name, 0) + number
    vision = both.parameters.components["vision"]
    assert vision
    assert surplus == {"vision": -vision}
    assert alone.parameters.components["vision"] == 0
    assert inspect_model(tmp_path).source is Source.BOTH
    assert inspect_model(path, source="headers").source is Source.HEADERS
    assert inspect_model(tmp_path, source="skeleton").source is Source.SKELETON


def test_a_skeleton_needs_a_config(path: Path) -> None:
    with pytest.raises(InputError, match="next to it to build"):
        inspect_model(path, source="skeleton")


def test_every_format_shows_it(path: Path, run_moetool: RunMoetool) -> None:
    page = run_moetool("inspect", path).stdout
    assert "qwen3moe)" in page
    assert "GGUF Q4_K_M; 4.67 bits per weight" in page
    done = run_moetool("inspect", path, "--format", "json")
    (model,) = json.loads(done.stdout)["models"]
    assert model["gguf"]["types"][0]["num_tensors"] == 15
    assert model["gguf"]["file_type"] == "Q4_K_M"
    rows = run_moetool("inspect", path, "--format", "csv").stdout.splitlines()
    assert len(rows) == 1 + 3 + 2 * 4
