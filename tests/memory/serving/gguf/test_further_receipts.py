"""Buffers are those that llama.cpp reported for further families and flags, and with CUDA.

One run in three is compared here, and all of them by `make gguf`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gguf.compare_buffers import (
    ON_TWO_GPUS,
    STAND_IN,
    WITH_CUDA,
    compare,
    list_models,
    read_lines,
)
from moetool.memory.serving.ggml.compute_buffer import (
    RECENT,
    count_gpu_compute_bytes,
    has_cuda_attention,
)
from moetool.memory.serving.gguf.sizes import _SPECIAL, read_model_sizes

EVERY = 3


@pytest.mark.parametrize(
    ("name", "num_runs"), [(STAND_IN, 758), (WITH_CUDA, 716), (ON_TWO_GPUS, 144)]
)
def test_buffers_are_those_that_llama_cpp_printed(name: str, num_runs: int, tmp_path: Path) -> None:
    found = list(compare(name, tmp_path, every=EVERY))

    assert len(read_lines(name)) == num_runs
    assert len(found) == -(-num_runs // EVERY)
    assert [each for each in found if each.differences] == []
    families = Counter(each.family for each in found)
    assert set(families) == {line["family"] for line in read_lines(name)}
    assert name != STAND_IN or {each.architecture for each in found} == set(_SPECIAL)


def test_one_gpu_with_all_layers_needs_no_file(tmp_path: Path) -> None:
    checked = 0
    for line, model in list_models(WITH_CUDA, tmp_path):
        setting, sizes = line["setting"], read_model_sizes(model)
        assert sizes is not None
        kind = setting["type_k"]
        has_all = setting["gpu_layers"] == 99 and not setting["cpu_moe"]
        is_plain = setting["flash"] and setting["type_v"] == kind
        if not has_all or not is_plain or not has_cuda_attention(sizes, type_k=kind, type_v=kind):
            continue
        checked += 1
        if checked % (2 * EVERY) == 0:
            found = count_gpu_compute_bytes(
                sizes,
                context=setting["context"],
                ubatch=setting["ubatch"],
                num_sequences=setting["sequences"],
                cache_type=kind,
                capability=RECENT,
            )
            printed = pytest.approx(line["mib"]["compute CUDA0"], abs=0.0051)
            assert found / 2**20 == printed, line["family"]
    assert checked == 256


def test_a_wrong_rule_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "moetool.memory.serving.ggml.allocation.scheduler"
    monkeypatch.setattr(f"{module}.keep_for_fusion", lambda nodes, _: nodes)

    different = [each for each in compare(WITH_CUDA, tmp_path, every=25) if each.differences]

    assert {name for each in different for name in each.differences} == {"compute CUDA0"}


def test_a_gpu_holds_more_than_buffers_as_the_notes_say() -> None:
    more = []
    for line in read_lines("cuda_memory.jsonl"):
        ((before,), (after,)) = (line["used_bytes"][stage] for stage in ("before", "decode"))
        on_gpu = [size for name, size in line["mib"].items() if name.endswith("CUDA0")]
        more.append((after - before) / 2**20 - sum(on_gpu))
    assert len(more) == 12
    assert (round(min(more)), round(max(more))) == (699, 741)
