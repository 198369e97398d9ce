"""Verdicts where torch's allocator has to give memory back, against what an H100 showed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moetool.catalogue.gpus import find_gpu
from moetool.catalogue.published import read_published_config
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Scenario
from tests.memory.saved_configs import make_runs

GIB = 2**30
NUM_LAYERS = 5
WIDE = Scenario(batch_size=32, num_prompt_tokens=512, num_new_tokens=16, dtype="bfloat16")


def save_cut_config(model: str, folder: Path) -> str:
    """Save a published configuration with its first layers alone, and return its path."""
    fields = {
        name: value[:NUM_LAYERS] if isinstance(value, list) and name.endswith("_types") else value
        for name, value in read_published_config(model).items()
        if name != "quantization_config"
    }
    path = folder / "config.json"
    path.write_text(json.dumps({**fields, "num_hidden_layers": NUM_LAYERS}), encoding="utf-8")
    return str(path)


# Each ran on an H100 of 79.2 GiB.
@pytest.mark.parametrize(
    ("model", "reserved_gib", "asked_gib"),
    [("deepseek-v3", 71.4, 87.2), ("deepseek-v3.2", 71.3, 87.8)],
)
def test_what_ran_on_an_h100_fits_there(
    model: str, reserved_gib: float, asked_gib: float, tmp_path: Path
) -> None:
    runs = make_runs(save_cut_config(model, tmp_path), gpu="h100")
    in_full = runs.simulate(WIDE)
    assert in_full.figures.peak_reserved_bytes == pytest.approx(asked_gib * GIB, rel=0.002)
    limited = runs.run_within(WIDE, find_gpu("h100").memory_bytes)
    assert limited is not None
    assert limited.figures.peak_reserved_bytes == pytest.approx(reserved_gib * GIB, rel=0.01)
    assert runs.run_within(WIDE, 70 * GIB) is None


def test_the_estimate_for_a_gpu_is_the_one_of_its_memory(tmp_path: Path) -> None:
    path = save_cut_config("deepseek-v3", tmp_path)
    (everywhere,), (named,) = (estimate_memory(path, [WIDE], gpu=gpu) for gpu in (None, "h100"))
    assert everywhere.figures.peak_reserved_bytes == pytest.approx(87.2 * GIB, rel=0.002)
    assert named.figures.peak_reserved_bytes == pytest.approx(71.4 * GIB, rel=0.01)
    assert named.fit is not None
    assert named.fit.fits
    total_bytes = named.figures.total_device_bytes
    assert total_bytes is not None
    assert named.fit.headroom_bytes == 81_559 * 2**20 - total_bytes
    assert named.limits is not None
    assert named.limits.largest_batch_size >= WIDE.batch_size
    assert named.limits.largest_prompt_tokens >= WIDE.num_prompt_tokens
    assert any(note.startswith("It fits because torch's allocator") for note in named.notes)
    assert not any(note.startswith("Tight fit") for note in named.notes)
    fits = {fit.gpu: fit.fits for fit in everywhere.fits if fit.quantization == "none"}
    assert fits["h100"]
    assert not fits["a40"]
