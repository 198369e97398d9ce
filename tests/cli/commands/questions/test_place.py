"""`moetool place` as users run it: reports, exports, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest

from moetool.trace.loads.metadata import LoadLayer, LoadMetadata
from moetool.trace.loads.writing import write_loads
from tests.command import RunMoetool
from tests.interchange.exports.reading_rules import (
    Held,
    read_eplb,
    read_ktransformers,
    read_sglang,
    read_tensorrt_llm,
    read_vllm_ascend,
)

LAYERS = range(6)


@pytest.fixture(scope="module")
def report(run_moetool: RunMoetool, short_demo_trace: Path) -> dict[str, object]:
    """The JSON report of the demonstration trace on 4 GPUs."""
    completed = run_moetool("place", short_demo_trace, "--gpus", "4", "--format", "json")
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    loaded: dict[str, object] = json.loads(completed.stdout)
    return loaded


def test_json_has_the_keys_that_are_promised(
    report: dict[str, object], short_demo_trace: Path
) -> None:
    assert report["schema"] == "moetool.place/1"
    assert report["trace"]["trace"] == str(short_demo_trace)  # type: ignore[index]
    layers: list[dict[str, object]] = report["layers"]  # type: ignore[assignment]
    methods: dict[str, dict[str, object]] = report["methods"]  # type: ignore[assignment]
    facts = ["stack", "layer", "num_experts", "top_k", "num_tokens"]
    assert [list(layer)[:5] for layer in layers] == [facts] * 6
    assert list(methods) == ["contiguous", "eplb", "coactivation"]
    keys = {"batch_imbalance", "fan_out", "all_to_all_bytes_per_token", "global_imbalance"}
    for method in methods.values():
        assert keys <= set(method)
        assert all(isinstance(method[key], float) for key in keys)
        assert keys <= set(method["baseline"])  # type: ignore[call-overload]
        slots: dict[str, list[int]] = method["physical_to_logical"]  # type: ignore[assignment]
        assert list(slots) == [str(layer) for layer in LAYERS]
        assert all(sorted(row) == list(range(8)) for row in slots.values())
    assert methods["contiguous"]["physical_to_logical"]["0"] == list(range(8))  # type: ignore[index]


def test_bytes_are_those_of_the_traced_model(report: dict[str, object]) -> None:
    """The demonstration model is known offline: a hidden state of 128 values of float32."""
    methods: dict[str, dict[str, float]] = report["methods"]  # type: ignore[assignment]
    assert (report["hidden_size"], report["bytes_per_value"]) == (128, 4)
    for method in methods.values():
        expected = len(LAYERS) * 2 * method["fan_out"] * 3 / 4 * 128 * 4
        assert method["all_to_all_bytes_per_token"] == pytest.approx(expected)


def test_csv_has_a_row_for_each_layer_and_method(
    run_moetool: RunMoetool, short_demo_trace: Path
) -> None:
    completed = run_moetool(
        "place", short_demo_trace, "--gpus", "2", "--layers", "1,3", "--format", "csv"
    )
    rows = list(csv.DictReader(io.StringIO(completed.stdout)))
    assert [(row["layer"], row["method"]) for row in rows] == [
        (layer, method) for layer in "13" for method in ("contiguous", "eplb", "coactivation")
    ]
    assert all(float(row["random_fan_out"]) == pytest.approx(11 / 7) for row in rows)


def find_held(slots: dict[str, list[int]], *, num_gpus: int) -> Held:
    return {
        int(layer): [
            row[start : start + len(row) // num_gpus]
            for start in range(0, len(row), len(row) // num_gpus)
        ]
        for layer, row in slots.items()
    }


@pytest.mark.parametrize(
    ("engine", "name", "method"),
    [
        ("sglang", "map.json", None),
        ("sglang", "map.json", "eplb"),
        ("sglang", "map.json", "contiguous"),
        ("tensorrt-llm", "map.yaml", None),
        ("vllm-ascend", "map.json", None),
        ("eplb", "map.pt", None),
    ],
)
def test_exports_hold_the_placement_of_the_report(
    run_moetool: RunMoetool,
    short_demo_trace: Path,
    report: dict[str, object],
    tmp_path: Path,
    engine: str,
    name: str,
    method: str | None,
) -> None:
    target = tmp_path / name
    options = () if method is None else ("--method", method)
    completed = run_moetool(
        *("place", short_demo_trace, "--gpus", "4", "--export", engine, "-o", target, *options)
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.startswith("Against contiguous placement")
    assert completed.stderr.startswith(f"wrote {target}; use it with: ")
    needs_all = engine in ("tensorrt-llm", "vllm-ascend")
    assert ("note: " in completed.stderr) == needs_all
    methods: dict[str, dict[str, dict[str, list[int]]]] = report["methods"]  # type: ignore[assignment]
    held = find_held(methods[method or "coactivation"]["physical_to_logical"], num_gpus=4)
    content = target.read_bytes()
    match engine:
        case "sglang":
            found = read_sglang(
                content, num_hidden_layers=6, num_experts=8, num_redundant=0, ep_size=4
            )
        case "tensorrt-llm":
            found = read_tensorrt_llm(content, moe_layers=LAYERS, ep_size=4)
        case "vllm-ascend":
            found = read_vllm_ascend(content)
        case _:
            found = read_eplb(content, num_gpus=4)
    assert found == held


def test_ktransformers_gets_the_counts(
    run_moetool: RunMoetool, short_demo_trace: Path, report: dict[str, object], tmp_path: Path
) -> None:
    target = tmp_path / "counts.pt"
    run_moetool("place", short_demo_trace, "--gpus", "4", "--export", "ktransformers", "-o", target)
    layers: list[dict[str, list[int]]] = report["layers"]  # type: ignore[assignment]
    cells = [
        (load, (number, expert))
        for number, layer in enumerate(layers)
        for expert, load in enumerate(layer["load"])
    ]
    kept = read_ktransformers(
        target.read_bytes(), num_hidden_layers=6, num_experts=8, num_gpu_experts=5
    )
    assert kept == [cell for _, cell in sorted(cells, reverse=True)[:5]]


def test_vllm_gets_advice_and_no_file(
    run_moetool: RunMoetool, short_demo_trace: Path, tmp_path: Path
) -> None:
    completed = run_moetool("place", short_demo_trace, "--gpus", "4", "--export", "vllm")
    assert completed.returncode == 0
    assert completed.stderr.startswith("No release of vLLM reads a placement from a file.")
    assert '"num_redundant_experts": ' in completed.stderr
    assert "--expert-placement-strategy linear" in completed.stderr
    refused = run_moetool(
        "place", short_demo_trace, "--gpus", "4", "--export", "vllm", "-o", tmp_path / "map.json"
    )
    assert refused.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--gpus", "3"), 2, "8 slots can't be shared out evenly to 3 GPUs"),
        (("--gpus", "4", "--nodes", "3"), 2, "4 GPUs can't be shared out evenly to 3 nodes"),
        (("--gpus", "4", "--redundant", "3"), 2, "8 experts and 3 redundant ones: 11 slots"),
        (("--gpus", "4", "--groups", "3"), 2, "can't be divided into 3 groups of equal size"),
        (("--gpus", "4", "--export", "sglang"), 2, "--export sglang needs a file to write"),
        (("--gpus", "4", "--method", "eplb"), 2, "there is no --export"),
        (("--gpus", "4", "--by", "nothing"), 2, "has no column 'nothing'"),
        (("--gpus", "4", "--layers", "9"), 2, "has no routed layer 9"),
        (("--gpus", "4", "--model", "no-such-model"), 3, "No model 'no-such-model'"),
        (("--gpus", "4", "--num-experts", "9"), 3, "--num-experts"),
        (
            ("--gpus", "4", "--export", "sglang", "-o", "map.yaml"),
            2,
            "is not a name for a file that sglang loads",
        ),
        (
            ("--gpus", "4", "--export", "sglang", "-o", "map.json", "--layers", "1"),
            2,
            "--layers leaves some out",
        ),
        (
            ("--gpus", "4", "--export", "sglang", "-o", "map.json", "--num-hidden-layers", "3"),
            2,
            "the model has only 3 hidden layers",
        ),
    ],
)
def test_refusals_are_named_and_leave_nothing(
    run_moetool: RunMoetool,
    short_demo_trace: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    completed = run_moetool("place", short_demo_trace, *options, cwd=tmp_path)
    assert completed.returncode == code
    assert words in completed.stderr
    assert completed.stderr.count("\nhint: ") == 1
    assert completed.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_number_of_layers_is_refused_before_any_row_is_read(
    run_moetool: RunMoetool, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("prompt_id,position,layer,expert\nthese,are,not,numbers\n")
    target = tmp_path / "map.json"
    completed = run_moetool("place", trace, "--gpus", "2", "--export", "sglang", "-o", target)
    assert completed.returncode == 2
    assert "the number of those of this model is unknown" in completed.stderr
    completed = run_moetool(
        *("place", trace, "--gpus", "2", "--export", "sglang", "-o", target),
        *("--num-hidden-layers", "4"),
    )
    assert completed.returncode == 3
    assert "can't be read as a trace" in completed.stderr
    assert list(tmp_path.iterdir()) == [trace]


def test_a_load_table_is_placed_by_load(run_moetool: RunMoetool, tmp_path: Path) -> None:
    path = tmp_path / "loads.parquet"
    columns = {"layer": [0] * 4 + [3] * 4, "expert": [0, 1, 2, 3] * 2}
    rows = pa.table({**columns, "count": [9, 7, 2, 4, 1, 2, 3, 8]})
    layers = tuple(LoadLayer("decoder", layer, num_experts=4, top_k=2) for layer in (0, 3))
    write_loads(
        [rows],
        path,
        describe=lambda: LoadMetadata(layers=layers),
        columns=("layer", "expert", "count"),
    )
    target = tmp_path / "map.yaml"
    completed = run_moetool(
        *("place", path, "--gpus", "2", "--export", "tensorrt-llm", "-o", target)
    )
    assert completed.returncode == 0, completed.stderr
    assert "A load table has no tokens" in " ".join(completed.stdout.split())
    assert "\nall max/mean " in completed.stdout
    assert "\nGPUs per token " not in completed.stdout
    # The heaviest goes to the lightest GPU that has room: 9 and 2 against 7 and 4.
    assert read_tensorrt_llm(target.read_bytes(), moe_layers=(0, 3), ep_size=2) == {
        0: [[0, 2], [1, 3]],
        3: [[3, 0], [2, 1]],
    }
    refused = run_moetool(
        *("place", path, "--gpus", "2", "--export", "eplb", "-o", tmp_path / "x.pt"),
        *("--method", "coactivation"),
    )
    assert refused.returncode == 2
    assert "needs a trace of tokens" in refused.stderr
