"""`measure_balance` gives the command's answer, wherever the rows are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool import measure_balance, read_trace, trace_model
from moetool.analysis.balance.result import FIGURES
from moetool.errors import InputError, UsageError
from moetool.report.questions.balance import render_table_text
from moetool.trace.companions import probabilities_path
from tests.command import RunMoetool


def test_a_path_gives_the_json_of_the_command(
    run_moetool: RunMoetool, short_demo_trace: Path
) -> None:
    completed = run_moetool("balance", short_demo_trace, "--format", "json")
    assert completed.returncode == 0, completed.stderr
    value = json.loads(completed.stdout)
    del value["schema"], value["moetool"]
    assert measure_balance(short_demo_trace).to_dict() == value


def test_a_frame_gives_the_figures_of_the_file(short_demo_trace: Path) -> None:
    stored, frame = measure_balance(short_demo_trace), measure_balance(read_trace(short_demo_trace))
    assert frame.to_frame().equals(stored.to_frame())
    assert frame.capacity == stored.capacity


def test_loads_are_those_that_pandas_counts(short_demo_trace: Path) -> None:
    rows = read_trace(short_demo_trace)
    experts = measure_balance(short_demo_trace).to_frame("experts").set_index(["layer", "expert"])
    assert experts["load"].to_dict() == rows.groupby(["layer", "expert"]).size().to_dict()
    prompts = rows.groupby(["layer", "expert"])["prompt_id"].nunique()
    assert experts["num_prompts"].to_dict() == prompts.to_dict()


def test_a_frame_is_grouped_by_any_column(short_demo_trace: Path) -> None:
    rows = read_trace(short_demo_trace)
    rows["half"] = np.where(rows["position"] % 2, "odd", "even")
    result = measure_balance(rows, by="half", layers=[1, 4])
    assert [layer.layer for layer in result.layers] == [1, 4]
    assert {part.name for part in result.parts if part.part == "group"} == {"odd", "even"}


def test_a_load_table_gives_the_same_figures_of_load(
    short_demo_trace: Path, tmp_path: Path
) -> None:
    rows = read_trace(short_demo_trace)
    loads = rows.groupby(["layer", "expert"]).size().reset_index(name="count")
    loads.to_csv(tmp_path / "loads.csv", index=False)
    whole = measure_balance(short_demo_trace)
    part = measure_balance(tmp_path / "loads.csv", num_experts=8, top_k=2)
    for one, other in zip(whole.layers, part.layers, strict=True):
        for name in (*FIGURES, "load", "mean_squared"):
            assert getattr(one, name) == getattr(other, name)
    assert measure_balance(tmp_path / "loads.csv", layers=[2], top_k=2).layers[0].layer == 2


def test_the_steps_of_a_load_table_are_batches(short_demo_trace: Path, tmp_path: Path) -> None:
    """Where each step counts a prompt, they drop as many as the prompts do."""
    rows = read_trace(short_demo_trace)
    rows["step"] = rows["prompt_id"].cat.codes
    loads = rows.groupby(["step", "layer", "expert"]).size().reset_index(name="count")
    shuffled = loads.sample(frac=1, random_state=0)
    whole = measure_balance(short_demo_trace)
    for number, table in enumerate((loads, shuffled)):
        path = tmp_path / f"loads{number}.parquet"
        table.to_parquet(path, index=False)
        part = measure_balance(path, num_experts=8, top_k=2)
        assert part.batches == "step"
        for one, other in zip(whole.capacity, part.capacity, strict=True):
            assert other.dropped_share == pytest.approx(one.dropped_share)
            assert other.baseline.dropped_share == pytest.approx(one.baseline.dropped_share)
            assert other.by_position is None
        for before, after in zip(whole.layers, part.layers, strict=True):
            assert after.max_violation_batch == pytest.approx(before.max_violation_batch)
            shares = [share.share for share in before.dropped]
            assert [share.share for share in after.dropped] == pytest.approx(shares)


def test_without_top_k_what_follows_from_it_is_unknown(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"step": [0, 0, 1, 1], "layer": 0, "expert": [0, 1, 0, 2], "count": [6, 2, 5, 3]}
    )
    table.to_parquet(tmp_path / "loads.parquet")
    result, known = (
        measure_balance(tmp_path / "loads.parquet", num_experts=4, top_k=k) for k in (None, 2)
    )
    (layer,), (of_two,) = result.layers, known.layers
    assert (layer.top_k, layer.num_tokens, result.trace.num_tokens) == (None, None, None)
    assert (of_two.top_k, of_two.num_tokens, known.trace.num_tokens) == (2, 8, 8)
    assert layer.baseline.load == of_two.baseline.load == 4
    unknown = {name for name, value in vars(layer.baseline).items() if value is None}
    assert unknown == {*FIGURES, "percentiles", "max_violation_batch", "mean_squared"} | {
        *("aux_loss", "unused_per_prompt")
    }
    # Figures of the load itself, and drops of steps, need no top-k.
    for name in (*FIGURES, "mean_squared", "max_violation_batch"):
        assert getattr(layer, name) == getattr(of_two, name)
    shares = [(each.dropped_share, each.tokens_per_batch) for each in result.capacity]
    assert shares == [(each.dropped_share, None) for each in known.capacity]
    assert [each.baseline.dropped_share for each in result.capacity] == [None] * 8
    assert {loss.name: loss.baseline for loss in result.losses if loss.name != "z_loss"} == (
        dict.fromkeys(["switch", "huggingface", "olmoe", "mean_squared"])
    )
    assert any("doesn't state how many experts" in note for note in result.notes)
    text = render_table_text(result)
    assert "of a router that chooses at random" in " ".join(text.split())


def test_a_load_table_of_too_many_steps_has_no_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame({"step": [0, 1], "layer": [0, 0], "expert": [0, 1], "count": [3, 4]})
    table.to_parquet(tmp_path / "loads.parquet")
    assert len(measure_balance(tmp_path / "loads.parquet", top_k=1).capacity) == 8
    for name in ("_MOST_ROWS", "_MOST_CELLS"):
        with monkeypatch.context() as patch:
            patch.setattr(f"moetool.trace.loads.steps.{name}", 1)
            result = measure_balance(tmp_path / "loads.parquet", top_k=1)
        assert (result.capacity, result.batches) == ((), None)
        assert any("capacity" in note for note in result.notes)


@pytest.mark.parametrize(
    "options", [{"by": "phase"}, {"tokens_per_batch": 8}, {"layers": [99]}, {"layers": []}]
)
def test_what_a_load_table_cannot_do_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    table = pd.DataFrame({"layer": [0, 0], "expert": [0, 1], "count": [3, 4]})
    table.to_parquet(tmp_path / "loads.parquet")
    with pytest.raises(UsageError):
        measure_balance(tmp_path / "loads.parquet", top_k=1, **options)


@pytest.mark.parametrize("tokens_per_batch", [0, -1, 2.5, True])
def test_a_batch_has_at_least_one_token(short_demo_trace: Path, tokens_per_batch: Any) -> None:
    with pytest.raises(UsageError, match="tokens per batch"):
        measure_balance(short_demo_trace, tokens_per_batch=tokens_per_batch)


def test_probabilities_are_read_from_the_file_and_from_memory(tmp_path: Path) -> None:
    texts = ["def f(x):\n    return x", "the quick brown fox jumps", "2 + 2 = 4"]
    trace = trace_model("demo", texts, probabilities=True)
    path = trace.save(tmp_path / "trace.parquet")
    assert probabilities_path(path).exists()
    in_memory, stored = measure_balance(trace), measure_balance(path)
    assert in_memory.losses == stored.losses
    assert in_memory.expert_choice == stored.expert_choice
    found = {loss.name: loss.value for loss in stored.losses}
    assert found["z_loss"] is None
    assert any("only up to a constant" in note for note in stored.notes)
    switch, olmoe = found["switch"], found["olmoe"]
    assert switch is not None
    assert olmoe == pytest.approx(2 * switch)
    # The choices are the largest probabilities, so the loss is above that of an even router.
    assert switch > 1


def test_probabilities_of_other_decisions_give_no_losses(tmp_path: Path) -> None:
    trace = trace_model("demo", ["one prompt", "and a second"], probabilities=True)
    path = trace.save(tmp_path / "trace.parquet")
    rows = pd.read_parquet(path)
    metadata = trace.metadata
    rows.attrs["moetool"] = metadata.to_dict()
    rows[rows["position"] > 0].to_parquet(path)
    result = measure_balance(path)
    assert {loss.name: loss.value for loss in result.losses}["switch"] is None
    assert any("doesn't have a row for each decision" in note for note in result.notes)


def test_damaged_probabilities_are_refused_by_name(tmp_path: Path) -> None:
    path = trace_model("demo", ["a prompt"], probabilities=True).save(tmp_path / "trace.parquet")
    broken = probabilities_path(path)
    content = broken.read_bytes()
    # The footer stays, so that the file is known to belong to the trace.
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    broken.write_bytes(bytes(footer) + content[footer:])
    with pytest.raises(InputError, match=r"trace\.probabilities\.parquet"):
        measure_balance(path)


def test_probabilities_of_a_model_of_another_size_are_refused(tmp_path: Path) -> None:
    path = trace_model("demo", ["a prompt"], probabilities=True).save(tmp_path / "trace.parquet")
    found = probabilities_path(path)
    table = pq.read_table(found)
    lists = [values[:5] for values in table.column("probabilities").to_pylist()]
    index = table.column_names.index("probabilities")
    shorter = pa.array(lists, type=table.schema.field("probabilities").type)
    pq.write_table(table.set_column(index, "probabilities", shorter), found)
    with pytest.raises(InputError, match="has 5 probabilities in layer 0, which has 8 experts"):
        measure_balance(path)
