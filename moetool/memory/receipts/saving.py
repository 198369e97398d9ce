"""Make receipts of measured estimates, and write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from moetool.catalogue.gpus import find_gpu
from moetool.choices import take_flag, take_path
from moetool.errors import UsageError
from moetool.memory.measured.machine import list_versions
from moetool.memory.measured.measurement import Measurement
from moetool.memory.receipts.receipt import SCHEMA, Card, Prediction, Receipt, Shown
from moetool.memory.result import Estimate
from moetool.output.targets import check_target_file, saying_what_failed, write_file
from moetool.plain import make_plain
from moetool.printable import escape_json

_NO_BOUND = "lower bounds on time, because no --gpu named the measured card"
_NO_TIMES = "times of its phases, because they didn't fit or nothing was timed"
_NO_BUS = "the speed of the bus, because there was no memory to measure it"


def save_receipts(
    estimates: Sequence[Estimate], path: str | Path, *, replace_existing: bool = False
) -> list[Receipt]:
    """Write the receipts of measured estimates to a file, which appears complete or not at all.

    Args:
        estimates: Estimates of `estimate_memory` with `measure=True`. Those that nothing was measured
            for are left out.
        replace_existing: Replace a file that exists.

    Returns:
        The receipts.

    Raises:
        UsageError: None of the estimates was measured, or the file can't be written.
    """
    path = take_path(path, name="path of the receipts")
    replace_existing = take_flag(replace_existing, name="replace_existing")
    # Of GGUF files nothing is ever measured.
    measured = [each for each in estimates if getattr(each, "measured", None) is not None]
    receipts = [make_receipt(each) for each in measured]
    if not receipts:
        raise UsageError(
            "A receipt holds a measurement, and nothing was measured.",
            hint="Measure the scenarios: --measure, or estimate_memory(…, measure=True).",
        )
    check_target_file(path, replace_existing=replace_existing)
    with saying_what_failed(path):
        write_file(
            render_receipts(receipts).encode(errors="backslashreplace"),
            path,
            replace_existing=replace_existing,
        )
    return receipts


def render_receipts(receipts: Iterable[Receipt]) -> str:
    """Return the text of a file of receipts: JSON with each receipt on a line."""
    lines = (
        escape_json(json.dumps(make_plain(receipt), ensure_ascii=False, allow_nan=False))
        for receipt in receipts
    )
    return f'{{"schema": "{SCHEMA}", "receipts": [\n' + ",\n".join(lines) + "\n]}\n"


def make_receipt(estimate: Estimate, *, date: str | None = None) -> Receipt:
    """Return the receipt of a measured estimate.

    Args:
        date: The day of the measurement; None for today, in UTC.

    Raises:
        ValueError: It wasn't measured, or the machine and the model weren't recorded.
    """
    measured = estimate.measured
    if measured is None or measured.machine is None or measured.geometry is None:
        raise ValueError("the estimate has no complete measurement")
    card = describe_card(measured)
    # The bounds are those of the GPU that the estimate is for.
    speed = estimate.speed if card.gpu is not None and card.gpu == estimate.gpu else None
    lacks = [
        reason
        for reason, value in (
            (_NO_BOUND, speed),
            (_NO_TIMES, measured.times),
            (_NO_BUS, measured.bus),
        )
        if value is None
    ]
    return Receipt(
        date=date or datetime.now(UTC).date().isoformat(),
        model=_name(estimate.model),
        geometry=measured.geometry,
        scenario=estimate.scenario,
        card=card,
        predicted=Prediction(
            method=estimate.method.value,
            figures=estimate.figures,
            context_bytes=estimate.context_bytes,
            prefill_at_least_s=speed.prefill_s if speed else None,
            decode_at_least_s_per_token=speed.decode_s_per_token if speed else None,
            versions=list_versions(),
        ),
        measured=Shown(
            figures=measured.figures,
            context_bytes=measured.context_bytes,
            seconds=measured.seconds,
            held_before_bytes=measured.held_before_bytes,
            times=measured.times,
            bus=measured.bus,
            versions=measured.machine.versions,
        ),
        lacks=tuple(lacks),
    )


def describe_card(measured: Measurement) -> Card:
    """Return the GPU of a measurement, with its id if the catalogue knows it."""
    machine = measured.machine
    return Card(
        name=measured.gpu,
        gpu=find_card_id(measured.gpu),
        memory_bytes=machine.memory_bytes if machine else None,
        driver=machine.driver if machine else None,
        cuda=machine.cuda if machine else None,
    )


def find_card_id(name: str) -> str | None:
    """Return the id of the GPU that a driver calls by a name; None if the catalogue has none."""
    try:
        return find_gpu(name).id
    except UsageError:
        return None


def _name(model: str) -> str:
    """Return a model's name without the folders of this machine."""
    path = Path(model)
    if not path.exists():
        return model
    return path.resolve().parent.name if path.is_file() else path.resolve().name
