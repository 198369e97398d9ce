"""Time the placement of a large model's experts, and score placements of a trace.

    python benchmarks/questions/placement.py speed
    python benchmarks/questions/placement.py scores TRACE
    python benchmarks/questions/placement.py transfer TRACE

`speed` makes a trace of a simulated router with popular experts and topics, 58 layers of 256
experts, and times `place` on it in one process. `scores` fits on half of a trace's prompts and
scores on the other half, over five seeds, for 8 and 16 GPUs, several weights of balance, and
replicas.
`transfer` fits on the domains of the first half of the alphabet and scores on the others.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moetool.analysis.placement.measure import PlacementOptions, measure_placement
from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.methods.layer_statistics import StatisticsCounter
from moetool.analysis.placement.result import COACTIVATION, METHODS, MethodPlacement
from moetool.analysis.placement.scoring import LayerScorer
from moetool.analysis.placement.trial import place_by_every_method
from moetool.trace.reading.reader import open_trace
from moetool.trace.windows.prompt_groups import read_prompt_groups
from moetool.trace.windows.reader import DecisionReader

_LAYERS, _EXPERTS, _TOP_K = 58, 256, 8
_PROMPTS, _TOKENS_PER_PROMPT = 100, 200
_CLUSTERS = (Cluster(32), Cluster(32, 4), Cluster(32, 4, 32, 8))
_SEEDS = range(5)


def write_simulated_trace(path: Path) -> int:
    """Write a trace of a large simulated model, and return its number of assignments."""
    rng = np.random.default_rng(0)
    num_tokens = _PROMPTS * _TOKENS_PER_PROMPT
    prompt = np.repeat(np.arange(_PROMPTS), _TOKENS_PER_PROMPT)
    order = np.lexsort((np.tile(np.arange(_TOKENS_PER_PROMPT), _PROMPTS), prompt))
    popular = rng.normal(scale=0.5, size=(_LAYERS, _EXPERTS))
    columns = {
        "prompt_id": pa.array([f"p{index}" for index in prompt[order].repeat(_TOP_K)]),
        "domain": pa.array([f"d{index % 4}" for index in prompt[order].repeat(_TOP_K)]),
        "position": np.tile(np.arange(_TOKENS_PER_PROMPT), _PROMPTS)
        .repeat(_TOP_K)
        .astype(np.int32),
    }
    words = {name: columns.pop(name).dictionary_encode() for name in ("prompt_id", "domain")}
    writer = None
    for layer in range(_LAYERS):
        topic = rng.normal(scale=0.7, size=(_PROMPTS, _EXPERTS))[prompt]
        # Tokens belong to one of 64 kinds, which share experts within a topic.
        kind = rng.normal(scale=2, size=(64, _EXPERTS))[rng.integers(64, size=num_tokens)]
        noise = rng.gumbel(size=(num_tokens, _EXPERTS))
        scores = popular[layer] + topic + kind + noise
        chosen = np.argpartition(-scores, _TOP_K, axis=1)[:, :_TOP_K]
        table = pa.table(
            {
                **words,
                **columns,
                "layer": np.full(num_tokens * _TOP_K, layer, dtype=np.int16),
                "expert": chosen.ravel().astype(np.int16),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return num_tokens * _TOP_K * _LAYERS


def time_placement() -> None:
    """Print the time that `place` takes on the simulated trace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        number = write_simulated_trace(path)
        options = PlacementOptions(num_experts=_EXPERTS, top_k=_TOP_K)
        for cluster in _CLUSTERS:
            start, busy = time.perf_counter(), time.process_time()
            result = measure_placement(open_trace(path), cluster, options)
            wall, cpu = time.perf_counter() - start, time.process_time() - busy
            print(f"{number:,} assignments, {cluster}: {wall:.1f} s wall, {cpu:.1f} s CPU")
            print_methods(result.methods)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak RSS {peak / 1024:,.0f} MiB")


def score_trace(path: Path) -> None:
    """Print held-out scores, as means over seeds."""
    for cluster in (Cluster(8), Cluster(16), Cluster(8, num_redundant_experts=16)):
        weights = (0.08,) if cluster.num_redundant_experts else (0.0, 0.05, 0.08, 0.12)
        for weight in weights:
            results = [
                measure_placement(
                    open_trace(path),
                    cluster,
                    PlacementOptions(seed=seed, balance_weight=weight),
                )
                for seed in _SEEDS
            ]
            names = METHODS if weight == weights[0] else (COACTIVATION,)
            for name in names:
                scores = [result.methods[name] for result in results]
                known = [score for score in scores if score is not None]
                rows = [
                    (
                        score.global_imbalance or 0.0,
                        score.batch_imbalance or 0.0,
                        score.fan_out or 0.0,
                        score.fan_out_change.change if score.fan_out_change else 0.0,
                        score.layers_better_than_eplb or 0.0,
                    )
                    for score in known
                ]
                everything, batch, fan_out, change, better = np.mean(rows, axis=0)
                label = f"{name} {weight}" if name == COACTIVATION else name
                print(
                    f"G={cluster.num_gpus} R={cluster.num_redundant_experts:<3} {label:18} all {everything:.3f}  batch {batch:.3f}  "
                    f"GPUs {fan_out:.2f} ({change:+.1%})  layers better than EPLB {better:.0%}"
                )


def score_transfer(path: Path) -> None:
    """Print scores on domains other than those that placements were fitted on."""
    reader = DecisionReader(open_trace(path))
    counters: dict[tuple[str, int], StatisticsCounter] = {}
    others: dict[tuple[str, int], list[NDArray[np.int64]]] = {}
    domains = sorted(set(read_prompt_groups(open_trace(path), reader.prompts, by="domain")))
    fitted = set(domains[: len(domains) // 2])
    sizes = {(layer.stack, layer.layer): layer.num_experts for layer in reader.layers}
    for window in reader:
        is_fitted = np.array([domain in fitted for domain in reader.domains])[window.prompt]
        for place, choices in window.layers.items():
            mine = is_fitted[choices.token]
            counter = counters.setdefault(place, StatisticsCounter(sizes[place], 512))
            counter.add(choices.experts[mine])
            others.setdefault(place, []).append(choices.experts[~mine])
    rows: dict[str, list[tuple[float, float]]] = {}
    for place, counter in counters.items():
        placements = place_by_every_method(counter.statistics, Cluster(8))
        scorer = LayerScorer(
            placements, num_experts=sizes[place], cluster=Cluster(8), tokens_per_batch=512
        )
        scorer.add(np.concatenate(others[place]))
        for name, score in scorer.scores().items():
            rows.setdefault(name, []).append((score.batch_imbalance or 0, score.fan_out or 0))
    print(f"fitted on {', '.join(sorted(fitted))}; scored on the other domains")
    for name, scores in rows.items():
        batch, fan_out = np.mean(scores, axis=0)
        print(f"G=8 {name:13} batch {batch:.3f}  GPUs {fan_out:.2f}")


def print_methods(methods: object) -> None:
    """Print the scores of each method on a line."""
    assert isinstance(methods, dict)
    for name, found in methods.items():
        assert isinstance(found, MethodPlacement)
        print(
            f"  {name:13} batch {found.batch_imbalance:.2f}  GPUs {found.fan_out:.2f}  "
            f"nodes {found.node_fan_out:.2f}"
        )


def main(arguments: list[str]) -> None:
    """Run the part that is asked for."""
    match arguments:
        case ["speed"]:
            time_placement()
        case ["scores", path]:
            score_trace(Path(path))
        case ["transfer", path]:
            score_transfer(Path(path))
        case _:
            print(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
