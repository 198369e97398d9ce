"""Hundreds of spoiled inputs: each is used, or refused in one error and one hint."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.bad_input.refusals import find_steering
from tests.command import Completed, run_main

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 0.5, 1e308, float("inf"), float("nan"), 2**31, 2**64, 10**30),
    *("", "a", "\x1b[31mred\x1b[0m\n", "\u202e\u2028", "a" * 5_000, "/etc/passwd", "{{ x }}"),
    *([], [[]], {}, {"a": 1}, [1, 2], ["a"], [None], [0] * 1_000, {"__float__": "Infinity"}),
)
BYTES = (
    *(b"\x00", b"\xff\xfe", b'"', b"{", b"\x1b[31m", b"\xed\xa0\x80", b"\n", b"\r", b","),
    *(b"9" * 5_000, b"[" * 3_000, b"\\ud800", b"NaN"),
)
CONTENTS = (
    b"{}",
    b"[]",
    b"null",
    b"",
    b"\xff\xfe",
    b'{"<x>": "a"}',
    b'{"<x>": 1e99}',
    b"{" * 5_000,
)

# Fields that are in no file here and that transformers acts on.
FIELDS = (
    "quantization_config",
    "auto_map",
    "text_config",
    "layer_types",
    "rope_scaling",
    "\x1b[2J",
)

Spoil = Callable[[Path, random.Random], tuple[str | Path, ...]]


def list_places(value: object, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to every value in some JSON, a few of each long list."""
    if place:
        yield place
    keys = (
        value.keys()
        if isinstance(value, Mapping)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    for key in list(keys)[:30]:
        yield from list_places(value[key], (*place, key))  # type: ignore[index]


def spoil_value(value: Any, chance: random.Random) -> Any:
    """Return some JSON with something in it replaced, removed, renamed or added."""
    spoiled = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = list(list_places(spoiled))
        if not places or chance.random() < 0.1:
            spoiled[chance.choice(FIELDS)] = copy.deepcopy(chance.choice(ODD))
            continue
        *path, last = chance.choice(places)
        owner = spoiled
        for key in path:
            owner = owner[key]
        what = chance.random()
        if what < 0.7 or isinstance(owner, list):
            owner[last] = copy.deepcopy(chance.choice(ODD))
        elif what < 0.85:
            del owner[last]
        else:
            owner["\x1b[2J\n" + "x" * 3_000] = owner.pop(last)
    return spoiled


def spoil_bytes(content: bytes, chance: random.Random) -> bytes:
    """Return bytes with some replaced, removed or added."""
    spoiled = bytearray(content)
    for _ in range(chance.choice((1, 1, 3, 20))):
        place = chance.randrange(len(spoiled) + 1)
        what = chance.random()
        if what < 0.4:
            spoiled[place : place + 1] = bytes([chance.randrange(256)])
        elif what < 0.6:
            del spoiled[place : place + chance.choice((1, 4, 50))]
        elif what < 0.9:
            spoiled[place:place] = chance.choice(BYTES)
        else:
            del spoiled[place:]
    return bytes(spoiled)


def spoil_json(path: Path, chance: random.Random) -> None:
    if chance.random() < 0.8:
        spoiled = spoil_value(json.loads(path.read_text("utf-8")), chance)
        path.write_text(json.dumps(spoiled), "utf-8")
    else:
        path.write_bytes(spoil_bytes(path.read_bytes(), chance))


def route(folder: Path, *options: str) -> tuple[str | Path, ...]:
    to_stdout = ("--prompt", "hello", "--device", "cpu", "--format", "csv", "--quiet")
    return ("route-trace", folder, *to_stdout, *options)


def spoil_config(folder: Path, chance: random.Random) -> tuple[str | Path, ...]:
    spoil_json(folder / "config.json", chance)
    source = chance.choice(("headers", "skeleton"))
    return chance.choice((("inspect", folder, "--source", source), route(folder)))


def spoil_tokenizer(folder: Path, chance: random.Random) -> tuple[str | Path, ...]:
    spoil_json(folder / chance.choice(("tokenizer.json", "tokenizer_config.json")), chance)
    return route(folder)


def add_tokenizer_file(folder: Path, chance: random.Random) -> tuple[str | Path, ...]:
    names = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "tokenizer.model")
    (folder / chance.choice(names)).write_bytes(chance.choice(CONTENTS))
    return route(folder)


def spoil_generation(folder: Path, chance: random.Random) -> tuple[str | Path, ...]:
    spoil_json(folder / "generation_config.json", chance)
    return route(folder, "--max-new-tokens", "2")


def spoil_header(folder: Path, chance: random.Random) -> tuple[str | Path, ...]:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = spoil_value(json.loads(content[8 : 8 + length]), chance)
    spoiled = json.dumps(header).encode()
    path.unlink()  # a link to the demonstration
    path.write_bytes(len(spoiled).to_bytes(8, "little") + spoiled + content[8 + length :])
    return ("inspect", folder, "--source", "headers")


def spoil_index(folder: Path, chance: random.Random) -> tuple[str | Path, ...]:
    path = folder / "model.safetensors.index.json"
    names = ("model.safetensors", "model-2.safetensors")
    index = {"weight_map": {f"tensor.{n}": names[n % 2] for n in range(5)}}
    path.write_text(json.dumps(index), "utf-8")
    spoil_json(path, chance)
    return ("inspect", folder, "--source", "headers")


def spoil_prompts(folder: Path, chance: random.Random) -> tuple[str | Path, ...]:
    path = folder / f"prompts.{chance.choice(('jsonl', 'csv', 'txt', 'parquet'))}"
    rows = [
        {"id": f"{n}\x1b[31m", "domain": chance.choice(("x", "\u202e\n")), "text": "a, b\n"}
        for n in range(5)
    ]
    match path.suffix:
        case ".csv":
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
            path.write_text(text.getvalue(), "utf-8")
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case _:
            path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    path.write_bytes(spoil_bytes(path.read_bytes(), chance))
    # Prompts are read before weights are looked for, and there are none.
    (folder / "model.safetensors").unlink()
    return ("route-trace", folder, "--prompts", path, "--format", "csv")


@pytest.fixture
def model(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demonstration, its weights linked."""
    for file in demo.glob("*.json"):
        shutil.copy(file, tmp_path)
    (tmp_path / "model.safetensors").symlink_to(demo / "model.safetensors")
    return tmp_path


def check(completed: Completed, *, seed: int) -> None:
    """Check that a command did what was asked, or ended in one error and one hint."""
    stderr = completed.stderr
    assert not find_steering(stderr), (seed, stderr)
    lines = [line for line in stderr.splitlines() if not line.startswith("warning: ")]
    if completed.returncode == 0:
        return
    assert completed.returncode in (2, 3, 4, 5), (seed, stderr)
    errors = [line for line in lines if line.startswith("error: ")]
    facts = [line for line in lines if line.startswith("  ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    assert (len(errors), len(hints)) == (1, 1), (seed, stderr)
    assert lines == errors + facts + hints, (seed, stderr)
    assert len(stderr) < 4_000, seed


@pytest.mark.parametrize(
    ("spoil", "times"),
    [
        (spoil_config, 50),
        (spoil_tokenizer, 30),
        (add_tokenizer_file, 20),
        (spoil_generation, 20),
        (spoil_header, 30),
        (spoil_index, 60),
        (spoil_prompts, 100),
    ],
)
def test_a_spoiled_input_is_used_or_refused_in_one_error_and_one_hint(
    spoil: Spoil, times: int, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = {path: path.read_bytes() for path in model.glob("*.json")}
    weights = (model / "model.safetensors").readlink()
    codes = set()
    for seed in range(times):
        for path in model.iterdir():
            path.unlink()
        for path, content in whole.items():
            path.write_bytes(content)
        (model / "model.safetensors").symlink_to(weights)
        args = spoil(model, random.Random(seed))
        completed = run_main(*args)
        check(completed, seed=seed)
        # Nothing past Python either.
        assert capfd.readouterr() == ("", ""), seed
        codes.add(completed.returncode)
    assert codes & {3, 5}
