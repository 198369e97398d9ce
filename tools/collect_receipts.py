"""Collect the receipts in the repository: a page of them, and the speeds that moetool shows.

python -m tools.collect_receipts           write docs/receipts.md and speed/recorded.json
python -m tools.collect_receipts --check   only say which is stale; exit 1 if any is
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from moetool.memory.receipts.reading import read_receipts
from moetool.memory.receipts.receipt import Receipt
from moetool.wording import join_words

REPOSITORY = Path(__file__).resolve().parent.parent
RECEIPTS = REPOSITORY / "benchmarks" / "receipts"
PAGE = REPOSITORY / "docs" / "receipts.md"
SPEEDS = REPOSITORY / "moetool" / "memory" / "speed" / "recorded.json"

_HEAD = """\
# Receipts

A receipt keeps one run as `moetool memory-estimate` predicted it and as a GPU showed it: memory, times of
its phases, the card, its driver and all versions. This page is made from the receipts in
[benchmarks/receipts](../benchmarks/receipts) by `python -m tools.collect_receipts`.

## Send one

On a machine with a GPU:

```
moetool memory-estimate olmoe-1b-7b --gpu here --batch-size 1,8 --new-tokens 33 --measure --save receipt.json
```

`--gpu here` adds the lower bounds on time of this machine's card, and the bandwidth of its bus is measured
too. Weights are random, so nothing is downloaded. The file has no paths, names of users or names of
machines; the model is named as it was given, without its folders. Read it, then open a pull request that adds it
to `benchmarks/receipts/`, or attach it to an issue. In Python, the same file comes from
[`save_receipts`](library.md#receipts):

```python
estimates = moetool.estimate_memory("olmoe-1b-7b", gpu="here", measure=True)
moetool.save_receipts(estimates, "receipt.json")
```

`moetool.read_receipts` reads such a file, and refuses what another tool wrote, what another version wrote and
what was damaged.
"""
_MEMORY = """
## Memory

Predicted minus measured, as shares of the measured peak: `to the byte` counts the runs whose peak of allocated memory is
exactly the predicted one. Approximate predictions rest on an assumption about routing. Another version of
transformers than the one that predicted makes a few tensors of ids more or less. The runs with 5.17 followed one
another in one process, where blocks that are left from the run before change what is reserved.
[How accurate memory estimates are](models/memory-accuracy.md) has each of the other runs.

| card | transformers, predicted with | method | geometries | runs | to the byte | allocated, worst | reserved, median | reserved, worst |
|---|---|---|---:|---:|---:|---:|---:|---:|"""
_SPEED = """
## Speed over its lower bound

Medians of the times of a phase, with its kernels loaded, over the lower bound of
[`--gpu`](models/memory-estimate.md#does-it-fit). transformers with its defaults, random weights in 16 bits.
Models with fewer layers than published are cut to their first ones.

| card | model | layers | batch × prompt | prefill, ms | prefill / bound | step, ms | step / bound |
|---|---|---:|---|---:|---:|---:|---:|"""
_BUS = """
## Buses

Copies of 256 MiB from the host's memory to the card, in GB/s; other cards of the same machine were at work, which
slows page-locked copies. A machine's own are found by `--measure`.

| card | runs | page-locked | ordinary |
|---|---:|---:|---:|"""
_LACKS = """
## Receipts that lack something

"""
_NOT_CONVERTED = (
    "`benchmarks/memory/measured/loading_h200.jsonl` holds no card, versions, or bytes of weights, so nothing in it "
    "became a receipt."
)


def main() -> None:
    """Write both files, or say which are stale."""
    made = {PAGE: render_page(read_all()), SPEEDS: render_speeds(read_all())}
    stale = [
        path
        for path, text in made.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if "--check" not in sys.argv[1:]:
            path.write_text(made[path], encoding="utf-8")
        print(
            f"{path.relative_to(REPOSITORY)} {'is stale' if '--check' in sys.argv[1:] else 'written'}"
        )
    if stale and "--check" in sys.argv[1:]:
        sys.exit(1)


def read_all(folder: Path = RECEIPTS) -> list[tuple[str, Receipt]]:
    """Return each receipt of a folder with the name of its file, sorted by card, model and size."""
    found = [
        (path.name, receipt)
        for path in sorted(folder.glob("*.json"))
        for receipt in read_receipts(path)
    ]
    return sorted(found, key=_order)


def _order(named: tuple[str, Receipt]) -> tuple[str, str, int, int, str]:
    name, receipt = named
    scenario = receipt.scenario
    return (
        receipt.card.gpu or receipt.card.name,
        receipt.model,
        scenario.batch_size,
        -scenario.num_prompt_tokens,
        name,
    )


def render_page(named: Sequence[tuple[str, Receipt]]) -> str:
    """Return the page of receipts."""
    receipts = [receipt for _, receipt in named]
    parts = [_HEAD, _MEMORY.rstrip("\n"), *_list_memory(receipts)]
    timed = [receipt for receipt in receipts if receipt.measured.times is not None]
    if timed:
        parts += [_SPEED.rstrip("\n"), *map(_describe_speed, timed)]
        parts += [_BUS.rstrip("\n"), *_list_buses(timed)]
    parts += [_LACKS.rstrip("\n"), "", *_list_lacks(named), "", _NOT_CONVERTED]
    return "\n".join(parts) + "\n"


def _list_memory(receipts: Iterable[Receipt]) -> Iterator[str]:
    def key(receipt: Receipt) -> tuple[str, str, str]:
        ran, predicted = (
            each.versions.get("transformers", "unknown")
            for each in (receipt.measured, receipt.predicted)
        )
        return receipt.card.name, f"{ran}, {predicted}", receipt.predicted.method

    for (card, versions, method), group in groupby(sorted(receipts, key=key), key=key):
        runs = list(group)
        allocated = [error for run in runs if (error := run.allocated_error) is not None]
        reserved = [error for run in runs if (error := run.reserved_error) is not None]
        geometries = {run.geometry.config_sha256 for run in runs}
        cells = (
            card,
            versions,
            method,
            f"{len(geometries)}",
            f"{len(runs)}",
            f"{allocated.count(0)}",
            f"{max(allocated, key=abs):+.4%}",
            f"{statistics.median(map(abs, reserved)):.3%}",
            f"{max(reserved, key=abs):+.3%}",
        )
        yield f"| {' | '.join(cells)} |"


def _describe_speed(receipt: Receipt) -> str:
    times = receipt.measured.times
    assert times is not None
    step = times.decode_s_per_token
    cells = (
        receipt.card.name,
        receipt.model,
        str(receipt.geometry.num_layers or ""),
        f"{receipt.scenario.batch_size} × {receipt.scenario.num_prompt_tokens}",
        f"{times.prefill_s * 1e3:.1f}",
        _word_ratio(receipt.prefill_over_bound),
        "" if step is None else f"{step * 1e3:.1f}",
        _word_ratio(receipt.decode_over_bound),
    )
    return f"| {' | '.join(cells)} |"


def _word_ratio(ratio: float | None) -> str:
    return "unknown" if ratio is None else f"{ratio:.1f}"


def _list_buses(receipts: Iterable[Receipt]) -> Iterator[str]:
    by_card: dict[str, list[Receipt]] = {}
    for receipt in receipts:
        if receipt.measured.bus is not None:
            by_card.setdefault(receipt.card.name, []).append(receipt)
    for card, runs in by_card.items():
        buses = {run.measured.bus for run in runs if run.measured.bus is not None}
        pinned = [bus.pinned_bytes_per_s / 1e9 for bus in buses]
        pageable = [bus.pageable_bytes_per_s / 1e9 for bus in buses]
        yield f"| {card} | {len(buses)} | {_word_range(pinned)} | {_word_range(pageable)} |"


def _word_range(values: Sequence[float]) -> str:
    least, most = f"{min(values):.1f}", f"{max(values):.1f}"
    return least if least == most else f"{least} to {most}"


def _list_lacks(named: Iterable[tuple[str, Receipt]]) -> Iterator[str]:
    lacking: dict[tuple[str, tuple[str, ...]], int] = {}
    for name, receipt in named:
        if receipt.lacks:
            lacking[name, receipt.lacks] = lacking.get((name, receipt.lacks), 0) + 1
    for (name, lacks), number in sorted(lacking.items()):
        yield f"- {number} of [{name}](../benchmarks/receipts/{name}): {join_words(lacks, last='and')}."


def render_speeds(named: Iterable[tuple[str, Receipt]]) -> str:
    """Return the ratios of times and bounds as JSON, one run a line."""
    rows: list[Mapping[str, object]] = []
    for _, receipt in named:
        if receipt.card.gpu is None or receipt.prefill_over_bound is None:
            continue
        decode = receipt.decode_over_bound
        rows.append(
            {
                "gpu": receipt.card.gpu,
                "model": receipt.model,
                "config_sha256": receipt.geometry.config_sha256,
                "task": receipt.scenario.task.value,
                "batch_size": receipt.scenario.batch_size,
                "num_prompt_tokens": receipt.scenario.num_prompt_tokens,
                "prefill_over_bound": round(receipt.prefill_over_bound, 3),
                "decode_over_bound": None if decode is None else round(decode, 3),
            }
        )
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


if __name__ == "__main__":
    main()
