"""Placements of load tables: by load alone, with steps as batches where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from moetool.analysis.placement.loads import measure_load_placement
from moetool.analysis.placement.measure import PlacementOptions
from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.statistics.halves import split_prompts
from moetool.errors import InputError, UsageError
from moetool.trace.loads.metadata import LoadLayer, LoadMetadata
from moetool.trace.loads.rows import LOAD_SCHEMA
from moetool.trace.loads.table import LoadTable, open_loads
from moetool.trace.loads.writing import write_loads
from tests.analysis.placement import reference

NUM_EXPERTS, TOP_K = 8, 2
CLUSTER = Cluster(4)


def write(folder: Path, counts: np.ndarray, *, has_steps: bool = True) -> LoadTable:
    """Return a load table of counts. # (num_steps, num_layers, num_experts)"""
    counts = counts if has_steps else counts.sum(axis=0, keepdims=True)
    step, layer, expert = (index.ravel() for index in np.indices(counts.shape))
    columns = {"step": step, "layer": layer, "expert": expert, "count": counts.ravel()}
    if not has_steps:
        del columns["step"]
    names = tuple(name for name in LOAD_SCHEMA.names if name in columns)
    path = folder / f"loads-{has_steps}.parquet"
    metadata = LoadMetadata(
        layers=tuple(
            LoadLayer("decoder", number, num_experts=NUM_EXPERTS, top_k=TOP_K)
            for number in range(counts.shape[1])
        )
    )
    table = pa.table({name: columns[name] for name in names})
    write_loads([table], path, describe=lambda: metadata, columns=names, replace_existing=True)
    return open_loads(path)


def draw_counts(seed: int = 0, *, num_steps: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts: np.ndarray = rng.poisson(
        rng.gamma(1, 50, size=NUM_EXPERTS), (num_steps, 3, NUM_EXPERTS)
    )
    counts[:, 0] = 0  # a dense layer, which engines' dumps hold as a row of zeros
    return counts * TOP_K


def test_steps_are_batches_and_half_of_them_is_held_out(tmp_path: Path) -> None:
    counts = draw_counts()
    result = measure_load_placement(write(tmp_path, counts), CLUSTER, PlacementOptions(seed=2))
    flags = split_prompts([str(step) for step in range(7)], seed=2)
    assert [layer.layer for layer in result.layers] == [1, 2]
    assert (result.split.unit, result.split.num_fitted, result.split.num_held_out) == ("step", 3, 4)
    for layer in result.layers:
        mine = counts[:, layer.layer]
        slots = reference.place_by_load(
            mine[~flags].sum(axis=0).tolist(), num_slots=8, num_groups=1, num_nodes=1, num_gpus=4
        )
        gpu_loads = mine[flags][:, slots].reshape(4, 4, 2).sum(axis=2)
        found = layer.scores["eplb"]
        assert found.batch_imbalance == pytest.approx(
            (gpu_loads.max(axis=1) / gpu_loads.mean(axis=1)).mean()
        )
        total = gpu_loads.sum(axis=0)
        assert found.global_imbalance == pytest.approx(total.max() / total.mean())
        assert layer.baseline["eplb"].batch_imbalance is not None
        assert list(layer.load) == mine.sum(axis=0).tolist()


def test_without_steps_scores_are_of_the_same_counts(tmp_path: Path) -> None:
    counts = draw_counts()
    loads = write(tmp_path, counts, has_steps=False)
    result = measure_load_placement(loads, CLUSTER, PlacementOptions())
    assert result.split.unit is None
    assert any("scored on the counts that they were fitted on" in note for note in result.notes)
    for layer in result.layers:
        slots = np.array(result.methods["eplb"].physical_to_logical[str(layer.layer)])  # type: ignore[union-attr]
        gpu_loads = counts.sum(axis=0)[layer.layer][slots].reshape(4, 2).sum(axis=1)
        assert layer.scores["eplb"].global_imbalance == pytest.approx(
            gpu_loads.max() / gpu_loads.mean()
        )
        assert layer.scores["eplb"].batch_imbalance is None


def test_co_activation_is_unknown_with_a_reason(tmp_path: Path) -> None:
    result = measure_load_placement(write(tmp_path, draw_counts()), CLUSTER, PlacementOptions())
    assert result.methods["coactivation"] is None
    assert result.to_dict()["methods"]["coactivation"] is None
    assert any("A load table has no tokens" in note for note in result.notes)
    eplb = result.methods["eplb"]
    assert eplb is not None
    assert (eplb.fan_out, eplb.all_to_all_bytes_per_token) == (None, None)


def test_random_counts_land_on_the_baseline(tmp_path: Path) -> None:
    """Random routers' steps agree with the baseline within four standard errors."""
    rng = np.random.default_rng(4)
    num_steps, num_tokens = 200, 64
    keys = rng.random((num_steps * num_tokens, NUM_EXPERTS))
    chosen = np.argsort(keys, axis=1)[:, :TOP_K].reshape(num_steps, -1)
    counts = np.stack([np.bincount(step, minlength=NUM_EXPERTS) for step in chosen])[:, None]
    result = measure_load_placement(write(tmp_path, counts), CLUSTER, PlacementOptions())
    (layer,) = result.layers
    found, expected = layer.scores["contiguous"], layer.baseline["contiguous"]
    loads = counts.reshape(num_steps, 4, 2).sum(axis=2)
    error = (loads.max(axis=1) / loads.mean(axis=1)).std() * (1 / 100 + 1 / 128) ** 0.5
    assert found.batch_imbalance is not None
    assert expected.batch_imbalance is not None
    assert abs(found.batch_imbalance - expected.batch_imbalance) <= 4 * error


def test_layers_that_are_missing_are_refused(tmp_path: Path) -> None:
    loads = write(tmp_path, draw_counts())
    with pytest.raises(UsageError, match="has no routed layer 7"):
        measure_load_placement(loads, CLUSTER, PlacementOptions(layers=[1, 7]))


def test_a_table_of_zeros_is_refused(tmp_path: Path) -> None:
    loads = write(tmp_path, draw_counts() * 0)
    with pytest.raises(InputError, match="counts no assignment"):
        measure_load_placement(loads, CLUSTER, PlacementOptions())
