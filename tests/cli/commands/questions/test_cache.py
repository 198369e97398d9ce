"""`moetool cache` as users run it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool import read_trace, simulate_caches
from moetool.errors import InputError, UsageError
from moetool.trace.schema import TRACE_SCHEMA
from tests.analysis.caching.plain_caches import count_hits, find_static_sets, list_steps
from tests.analysis.random_traces import Router, make_random_trace
from tests.command import RunMoetool

ROUTER = Router(num_experts=8, top_k=2, num_layers=2)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace of four prompts with generated tokens, of an unknown model."""
    path = tmp_path / "trace.parquet"
    pq.write_table(make_random_trace((9, 6, 12, 8), router=ROUTER, num_prompt_tokens=4), path)
    return path


def test_the_page_begins_with_what_the_numbers_say(run_moetool: RunMoetool, trace: Path) -> None:
    completed = run_moetool("cache", trace, "--budget", "25%,6")
    assert completed.returncode == 0, completed.stderr
    text = " ".join(completed.stdout.split())
    assert text.startswith("With 25% of the experts (2 of each layer) on the GPU, the best")
    assert "Bytes are unknown: the trace names no model." in text
    sized = run_moetool("cache", trace, "--budget", "6", "--expert-bytes", "1048576")
    assert "12.0 MiB" in sized.stdout
    assert "are moved per token." in " ".join(sized.stdout.split())


def test_json_and_csv_have_the_numbers_of_the_library(
    run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    options = ("--budget", "2,50%", "--tokens-per-batch", "3", "--expert-bytes", "1000")
    for name in ("result.json", "result.csv"):
        written = run_moetool("cache", trace, *options, "-o", tmp_path / name)
        assert (written.returncode, written.stdout) == (0, ""), written.stderr
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result.pop("schema") == "moetool.cache/1"
    del result["moetool"]
    in_python = simulate_caches(trace, budget="2,50%", tokens_per_batch=3, expert_bytes=1000)
    assert result == in_python.to_dict()
    assert {"policy", "budget", "hit_rate", "bytes_per_token"} <= result["policies"][0].keys()
    assert [list(layer)[:5] for layer in result["layers"]] == [
        ["stack", "layer", "num_experts", "top_k", "num_tokens"]
    ] * 2
    rows = list(csv.DictReader((tmp_path / "result.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4 * 2 * 2
    assert list(rows[0]) == list(in_python.to_frame().columns)
    assert len(in_python.to_frame("layer_policies")) == 2 * len(rows)
    assert set(in_python.to_frame("touched")["of"]) == {"one text", "several texts"}
    assert len(in_python.to_frame("layer_touched")) > len(in_python.to_frame("touched"))


def test_hits_by_group_are_on_the_page_in_json_and_in_csv(
    run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    options = ("--budget", "2,50%", "--by", "domain", "--expert-bytes", "1000")
    page = run_moetool("cache", trace, *options)
    assert page.returncode == 0, page.stderr
    assert "decode, by domain, with 2 experts of each layer on the GPU:" in page.stdout
    for name in ("result.json", "result.csv"):
        assert run_moetool("cache", trace, *options, "-o", tmp_path / name).returncode == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["by"] == "domain"
    assert {item["group"] for item in result["groups"]} == {"code", "prose"}
    assert list(result["groups"][0]["baseline"]) == ["hit_rate", "bytes_per_token"]
    with (tmp_path / "result.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows].count("") == len(result["policies"])
    for item, row in zip(result["groups"], rows[len(result["policies"]) :], strict=True):
        assert (row["group"], row["policy"]) == (item["group"], item["policy"])
        assert float(row["hit_rate"]) == item["hit_rate"]
        assert float(row["random_hit_rate"]) == item["baseline"]["hit_rate"]
        assert int(row["num_tokens"]) == item["num_tokens"]
        assert row["gpu_bytes"] != ""
    with pytest.raises(UsageError, match="has no column 'language'"):
        simulate_caches(trace, by="language")


def test_a_real_trace_has_the_hits_of_plain_caches(demo_trace: Path) -> None:
    frame = read_trace(demo_trace)
    few = sorted(frame["prompt_id"].unique())[::100]
    frame = frame[frame["prompt_id"].isin(few) & (frame["layer"] < 2)].reset_index(drop=True)
    result = simulate_caches(frame, budget="3", expert_bytes=10)
    table = pa.Table.from_pandas(frame, schema=TRACE_SCHEMA, preserve_index=False)
    for layer in result.layers:
        for phase in ("prefill", "decode"):
            steps = list_steps(table, layer=layer.layer, decodes_all=phase == "decode")
            static = find_static_sets(table, layer=layer.layer, capacity=3)
            requests = sum(len(step.needed) for step in steps)
            for item in layer.policies:
                if item.phase == phase:
                    hits = count_hits(steps, item.policy, capacity=3, static=static)[phase]
                    assert item.hit_rate == pytest.approx(hits / requests), item


def test_the_model_gives_the_size_of_an_expert(demo_trace: Path, trace: Path) -> None:
    sizes = {layer.expert_bytes for layer in simulate_caches(demo_trace, layers=[0]).layers}
    # Three matrices of 256 x 128 in bfloat16.
    assert sizes == {196_608}
    named = simulate_caches(trace, model="demo", budget="1")
    assert named.layers[1].expert_bytes == 196_608
    assert named.policies[0].gpu_bytes == 2 * 196_608
    higher = read_trace(trace).assign(layer=lambda rows: rows["layer"] + 40)
    with pytest.raises(InputError, match=r"the model has no routed layer 40 \(decoder\)"):
        simulate_caches(higher, model="demo")
    with pytest.raises(InputError, match="has 8 experts in the model, 16 in the trace"):
        simulate_caches(trace, model="demo", num_experts=16)
    with pytest.raises(InputError, match="'gpt-4' is known from reports alone"):
        simulate_caches(trace, model="gpt-4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "some"}, "'some' is not a budget"),
        ({"budget": 3}, "budget can't be 3"),
        ({"budget": "1GiB"}, "needs the size of an expert, which is unknown"),
        ({"budget": "1kB", "expert_bytes": 600}, "less than one expert of each layer, 1,200 bytes"),
        ({"expert_bytes": 0}, "size of an expert can't be 0"),
        ({"tokens_per_batch": 0}, "number of tokens of a batch can't be 0"),
        ({"expert_bytes": 5, "model": "demo"}, "given twice, by a number and by a model"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, object], message: str, trace: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        simulate_caches(trace, **options)  # type: ignore[arg-type]


def test_a_budget_that_cannot_be_met_leaves_no_file(
    run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    output = tmp_path / "result.json"
    completed = run_moetool("cache", trace, "--budget", "12 parsecs", "-o", output)
    assert (completed.returncode, output.exists()) == (2, False)
    assert "error: '12 parsecs' is not a budget." in completed.stderr
    assert "hint: Write experts per layer as 16" in completed.stderr
