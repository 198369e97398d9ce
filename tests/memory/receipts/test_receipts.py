"""Receipts come back as they were written; foreign and damaged files are refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moetool import read_receipts, save_receipts
from moetool.errors import InputError, UsageError
from moetool.memory.receipts.receipt import SCHEMA
from moetool.memory.receipts.saving import make_receipt, render_receipts
from tests.memory.receipts.receipts import TIMES, VERSIONS, make_measured


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "receipt.json"
    save_receipts([make_measured()], path)
    return path


def test_a_receipt_comes_back_as_it_was_written(saved: Path) -> None:
    (receipt,) = read_receipts(saved)
    assert receipt == make_receipt(make_measured(), date=receipt.date)
    assert (receipt.card.gpu, receipt.card.driver, receipt.card.cuda) == ("h200", "580.95", "13.0")
    assert (receipt.measured.versions, receipt.measured.times) == (VERSIONS, TIMES)
    assert receipt.prefill_over_bound == pytest.approx(0.0816 / 0.0272)
    assert receipt.decode_over_bound == pytest.approx(3)
    assert receipt.lacks == ()
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_bounds_of_another_card_are_not_this_one_s() -> None:
    receipt = make_receipt(replace(make_measured(), gpu="h100"))
    assert receipt.prefill_over_bound is None
    assert receipt.predicted.decode_at_least_s_per_token is None
    assert receipt.lacks == ("lower bounds on time, because no --gpu named the measured card",)


def test_a_receipt_names_a_model_and_not_where_it_lies(tmp_path: Path) -> None:
    config = tmp_path / "secret" / "my-model" / "config.json"
    config.parent.mkdir(parents=True)
    config.touch()
    for path in (config, config.parent):
        receipt = make_receipt(make_measured(str(path)))
        assert receipt.model == "my-model"
        assert "secret" not in render_receipts([receipt])


def test_nothing_is_written_where_nothing_was_measured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was measured") as caught:
        save_receipts([replace(make_measured(), measured=None)], tmp_path / "receipt.json")
    assert "--measure" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_file_is_only_replaced_where_that_is_asked_for(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        save_receipts([make_measured("other")], saved)
    assert saved.read_bytes() == before
    save_receipts([make_measured("other")], saved, replace_existing=True)
    assert [receipt.model for receipt in read_receipts(saved)] == ["other"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"\x00\xff", "is not JSON"),
        (b"[]", "is not a file of receipts"),
        (b'{"schema": "moetool.memory-estimate/1"}', "is not a file of receipts"),
        (b'{"schema": "moetool.receipts/2", "receipts": []}', "version moetool.receipts/2"),
        (b'{"schema": "moetool.receipts/1"}', "receipts is not a list"),
        (b'{"schema": "moetool.receipts/1", "receipts": [], "a": 1}', "unknown field 'a'"),
    ],
)
def test_a_foreign_file_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_receipts(path)
    assert str(path) in caught.value.message


def set_in(*names: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(receipt: dict[str, Any]) -> None:
        for name in names[:-1]:
            receipt = receipt[name]
        receipt[names[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_in("date", value="yesterday"), r"receipts\[0\]\.date is not a day"),
        (set_in("model", value=3), r"\.model is not a text"),
        (set_in("user", value="me"), "has the unknown field 'user'"),
        (set_in("card", value=None), r"\.card is not an object"),
        (set_in("scenario", "batch_size", value=0), r"\.scenario: "),
        (set_in("scenario", "colour", value=1), "unknown option 'colour'"),
        (set_in("measured", "seconds", value=-1), r"\.seconds is negative"),
        (set_in("measured", "seconds", value=float("nan")), r"\.seconds is negative or not finite"),
        (set_in("measured", "context_bytes", value=1.5), r"\.context_bytes is not a whole number"),
        (set_in("measured", "context_bytes", value=True), r"\.context_bytes is not a whole number"),
        (set_in("measured", "figures", "weights_bytes", value=None), r"\.measured lacks a figure"),
        (set_in("measured", "versions", "torch", value=2), r"\.versions\.torch is not a text"),
        (set_in("lacks", value=["a", 1]), r"\.lacks\[1\] is not a text"),
        (lambda receipt: receipt.pop("geometry"), "lacks 'geometry'"),
        (lambda receipt: receipt["measured"].pop("bus"), r"\.measured lacks 'bus'"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(
    change: Callable[[dict[str, Any]], object], words: str, saved: Path
) -> None:
    value = json.loads(saved.read_text(encoding="utf-8"))
    change(value["receipts"][0])
    saved.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        read_receipts(saved)
    assert "is damaged" in caught.value.message


def test_every_cut_of_a_file_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for end in range(0, len(content) - 2, 97):
        saved.write_bytes(content[:end])
        with pytest.raises(InputError):
            read_receipts(saved)


def test_an_older_receipt_lacks_options_that_scenarios_have_now(saved: Path) -> None:
    value = json.loads(saved.read_text(encoding="utf-8"))
    del value["receipts"][0]["scenario"]["experts"]
    saved.write_text(json.dumps(value), encoding="utf-8")
    assert value["schema"] == SCHEMA
    assert read_receipts(saved)[0].scenario == make_measured().scenario


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.json' can't be read"):
        read_receipts(tmp_path / "nothing.json")
