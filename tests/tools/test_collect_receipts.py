"""The page of receipts and the recorded speeds are what the tool makes of the receipts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moetool.memory.receipts.saving import make_receipt, render_receipts
from moetool.memory.speed.seen import read_recorded_speeds
from tests.memory.receipts.receipts import make_measured
from tools.collect_receipts import PAGE, RECEIPTS, SPEEDS, read_all, render_page, render_speeds


def test_the_page_and_the_speeds_are_what_the_tool_makes() -> None:
    named = read_all()
    assert PAGE.read_text(encoding="utf-8") == render_page(named)
    assert SPEEDS.read_text(encoding="utf-8") == render_speeds(named)


def test_every_receipt_is_on_the_page_once() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if "| simulated |" in line or "| approximate |" in line
    ]
    receipts = [
        receipt
        for path in RECEIPTS.iterdir()
        for receipt in json.loads(path.read_text(encoding="utf-8"))["receipts"]
    ]
    assert sum(int(row[4]) for row in rows) == len(receipts)
    for card, versions, method, _, num_runs, num_exact, worst, *_ in rows:
        errors = [
            each["predicted"]["figures"]["peak_allocated_bytes"]
            / each["measured"]["figures"]["peak_allocated_bytes"]
            - 1
            for each in receipts
            if (each["card"]["name"], each["predicted"]["method"]) == (card, method)
            and each["measured"]["versions"]["transformers"] == versions.partition(",")[0]
        ]
        assert len(errors) == int(num_runs)
        assert sum(error == 0 for error in errors) == int(num_exact)
        assert f"{max(errors, key=abs):+.4%}" == worst


def test_recorded_speeds_are_those_of_receipts_with_times() -> None:
    timed = [receipt for _, receipt in read_all() if receipt.prefill_over_bound is not None]
    assert len(timed) == len(read_recorded_speeds())
    for receipt, recorded in zip(timed, read_recorded_speeds(), strict=True):
        assert recorded.prefill_over_bound == pytest.approx(receipt.prefill_over_bound, abs=1e-3)


def test_a_receipt_with_times_has_a_row_and_its_bus(tmp_path: Path) -> None:
    receipt = make_receipt(make_measured(), date="2026-11-27")
    (tmp_path / "one.json").write_text(render_receipts([receipt]), encoding="utf-8")
    named = read_all(tmp_path)
    page = render_page(named)
    assert "| NVIDIA H200 | demo | 4 | 1 × 2048 | 81.6 | 3.0 | 2.5 | 3.0 |\n" in page
    assert "| NVIDIA H200 | 1 | 50.0 | 10.0 |\n" in page
    (speed,) = json.loads(render_speeds(named))
    assert (speed["gpu"], speed["prefill_over_bound"]) == ("h200", 3.0)
