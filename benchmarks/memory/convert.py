"""Turn measured lines into receipts, with the predictions that moetool makes today.

    python -m benchmarks.memory.convert MEASURED.jsonl DATE RECEIPTS.json [--first N] [--number N]

The lines are those of `benchmarks.memory.accuracy` and of `benchmarks.memory.speed`. Models are cut and
kept in the dtypes of the transformers that ran, as in the comparison of estimates. What a line doesn't
hold is null, and its receipt says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.memory.accuracy import build_as_measured, prepare_case
from moetool.catalogue.gpus import find_gpu
from moetool.memory.answers.figures import MemoryFigures
from moetool.memory.measured.geometry import describe_geometry
from moetool.memory.measured.machine import list_versions
from moetool.memory.measured.measurement import BusBandwidth, PhaseTimes
from moetool.memory.receipts.receipt import Card, Prediction, Receipt, Shown
from moetool.memory.receipts.saving import find_card_id, render_receipts

_LACKS = {
    "driver": "the driver's version",
    "moetool": "the version of moetool that measured",
    "python": "the version of Python",
    "times": "times of its phases",
    "bus": "the speed of the bus",
}


def main() -> None:
    """Convert some lines of a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("measured", type=Path)
    parser.add_argument("date")
    parser.add_argument("receipts", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--number", type=int, default=None)
    arguments = parser.parse_args()
    lines = [json.loads(text) for text in arguments.measured.read_text().splitlines()]
    lines = [line for line in lines if "model" in line]
    end = None if arguments.number is None else arguments.first + arguments.number
    receipts = []
    for line in lines[arguments.first : end]:
        receipts.append(convert(line, date=arguments.date))
        print(receipts[-1].model, receipts[-1].allocated_error, flush=True)
    arguments.receipts.write_text(render_receipts(receipts))


def convert(line: Mapping[str, Any], *, date: str) -> Receipt:
    """Return the receipt of a measured line."""
    # Lines of `accuracy` are flat, and those of `speed` are measurements as they are.
    figures = line.get("figures", line)
    machine = line.get("machine") or {
        "versions": {name: line[name] for name in ("torch", "transformers")}
    }
    times, bus = line.get("times"), line.get("bus")
    held = {
        "driver": machine.get("driver"),
        **{name: machine["versions"].get(name) for name in ("moetool", "python")},
        "times": times,
        "bus": bus,
    }
    builder, scenario = prepare_case(line["model"], line["options"])
    gpu = find_card_id(line["gpu"])
    return Receipt(
        date=date,
        model=line["model"],
        geometry=describe_geometry(builder.subject.config),
        scenario=scenario,
        card=Card(
            name=line["gpu"],
            gpu=gpu,
            memory_bytes=machine.get("memory_bytes"),
            driver=machine.get("driver"),
            cuda=machine.get("cuda"),
        ),
        predicted=predict(
            builder, scenario, gpu=gpu, transformers=machine["versions"]["transformers"]
        ),
        measured=Shown(
            figures=MemoryFigures(
                **{each.name: figures[each.name] for each in fields(MemoryFigures)}
            ),
            context_bytes=line["context_bytes"],
            seconds=line["seconds"],
            held_before_bytes=line.get("held_before_bytes"),
            times=PhaseTimes(**times) if times else None,
            bus=BusBandwidth(**bus) if bus else None,
            versions=machine["versions"],
        ),
        lacks=tuple(words for name, words in _LACKS.items() if held[name] is None),
    )


def predict(builder: Any, scenario: Any, *, gpu: str | None, transformers: str) -> Prediction:
    """Return what moetool predicts for a case on a GPU."""
    from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
    from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_workspace_bytes
    from moetool.memory.simulated.runs import run_scenario
    from moetool.memory.speed.bounds import bound_speed
    from moetool.memory.speed.experts_touched import find_choices

    named = find_gpu(gpu or "h200")
    skeleton = build_as_measured(builder, scenario, transformers=transformers)
    # Not `estimate_memory`, which refuses scenarios beyond a model's context.
    run = run_scenario(
        skeleton,
        scenario,
        workspace_bytes=find_workspace_bytes(named),
        context_bytes=CONTEXT_BYTES,
    )
    run = run.limit_to(named.memory_bytes) or run
    routed = RoutedSkeleton.of(skeleton)
    bound = bound_speed(
        skeleton,
        scenario,
        named,
        cache_bytes=run.prompt_cache_bytes,
        choices=find_choices(routed),
        unquantized=routed,
    )
    return Prediction(
        method=run.method.value,
        figures=run.figures.show(),
        context_bytes=CONTEXT_BYTES,
        prefill_at_least_s=bound.prefill_s if gpu else None,
        decode_at_least_s_per_token=bound.decode_s_per_token if gpu else None,
        versions=list_versions(),
    )


if __name__ == "__main__":
    main()
