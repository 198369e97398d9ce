"""Import ESFT's `expert_weights_<layer>.txt`: a line for each sequence, a file for each layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.interchange.imports.reading.text import Line, damaged, iter_lines, quote
from moetool.interchange.imports.runs import (
    DECODER,
    Column,
    Facts,
    ImportFiles,
    LayerChoices,
    TokenRun,
    TraceImport,
)
from moetool.interchange.imports.shapes import GivenShapes

FORMAT = "esft"
FILE = re.compile(r"expert_weights_(\d{1,5})\.txt")
_RANK = re.compile(r"rank_\d+")


@dataclass(frozen=True)
class _Recording:
    """The files of one rank of one task, by layer."""

    name: str
    task: str
    paths: dict[int, Path]


def open_esft(files: ImportFiles, shapes: GivenShapes) -> TraceImport:
    """Return the decisions in the files of some tasks; the task is the domain.

    Raises:
        InputError: A file holds something else.
        UsageError: The number of experts per token is not known.
    """
    facts = Facts(FORMAT)
    top_k = shapes.find_top_k(because="takes their lines apart")
    recordings = _find_recordings(files.paths)
    facts.note("Weights have the four decimals that ESFT writes.")
    facts.note("Token ids are not in ESFT's files.")
    columns = frozenset[Column](("domain", "phase", "rank", "weight"))
    return TraceImport(_iter_runs(recordings, top_k=top_k), columns, facts)


def list_files(path: Path) -> list[Path]:
    """Return a file itself, or ESFT's files in a folder and its `rank_*` folders."""
    if not path.is_dir():
        return [path]
    found = [*path.glob("expert_weights_*.txt"), *path.glob("rank_*/expert_weights_*.txt")]
    return sorted(each for each in found if FILE.fullmatch(each.name))


def _find_recordings(paths: tuple[Path, ...]) -> list[_Recording]:
    found: dict[Path, dict[int, Path]] = {}
    for path in paths:
        files = list_files(path)
        if not files:
            raise damaged(quote(path), "holds no expert_weights_<layer>.txt")
        for file in files:
            named = FILE.fullmatch(file.name)
            if named is None:
                raise InputError(
                    f"{quote(file)} doesn't name its layer.",
                    hint="Keep ESFT's names, such as expert_weights_12.txt.",
                )
            layers = found.setdefault(file.resolve().parent, {})
            if int(named[1]) in layers:
                raise InputError(
                    f"{quote(file)} was given twice.", hint="Name each file or folder once."
                )
            layers[int(named[1])] = file
    recordings = []
    for folder, layers in found.items():
        is_rank = _RANK.fullmatch(folder.name) is not None
        task = folder.parent.name if is_rank else folder.name
        name = f"{task}/{folder.name}" if is_rank else task
        recordings.append(_Recording(name, task, dict(sorted(layers.items()))))
    names = [recording.name for recording in recordings]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(
            f"Two folders hold files of '{repeated}'.", hint="Give folders of different tasks."
        )
    return recordings


def _iter_runs(recordings: list[_Recording], *, top_k: int) -> Iterator[TokenRun]:
    for recording in recordings:
        readers = [iter_lines(path) for path in recording.paths.values()]
        for lines in zip_longest(*readers):
            run = _read_lines(recording, lines, top_k=top_k)
            yield run


def _read_lines(recording: _Recording, lines: tuple[Line | None, ...], *, top_k: int) -> TokenRun:
    """Return the decisions of one sequence in all layers."""
    layers: list[LayerChoices] = []
    first = next(line for line in lines if line is not None)
    for (layer, path), line in zip(recording.paths.items(), lines, strict=True):
        if line is None or line.number != first.number:
            raise InputError(
                f"{quote(path)} has no line {first.number}, unlike {first.source}.",
                hint="Import files of one complete run: each line is a sequence.",
            )
        experts, weights = _read_line(line, top_k=top_k)
        if layers and len(experts) != len(layers[0].experts):
            raise InputError(
                f"{line.source} has {len(experts)} tokens, and {first.source} "
                f"{len(layers[0].experts)}.",
                hint="Import files of one complete run: each line is a sequence.",
            )
        layers.append(LayerChoices(DECODER, layer, experts, weights))
    num_tokens = len(layers[0].experts)
    return TokenRun(
        source=first.source,
        prompt_id=f"{recording.name}/line{first.number}",
        position=np.arange(num_tokens),
        layers=layers,
        domain=recording.task,
        phase=np.zeros(num_tokens, dtype=np.int64),
    )


def _read_line(line: Line, *, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    ids, gap, weights = line.text.partition(b"\t\t")
    try:
        experts = np.array(ids.split(b"\t"), dtype=np.int64)
        numbers = np.array(weights.split(b"\t"), dtype=np.float32)
    except (ValueError, OverflowError):
        experts, numbers = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.float32)
    if not gap or len(experts) != len(numbers):
        raise damaged(
            line.source, "is not a line of ESFT: expert ids, two tabs, and as many weights"
        )
    if len(experts) % top_k:
        raise InputError(
            f"{line.source} has {len(experts)} experts, which are not {top_k} for each token.",
            hint="Correct --top-k: DeepSeek-V2-Lite, which ESFT's files are of, has 6.",
        )
    return experts.reshape(-1, top_k), numbers.reshape(-1, top_k)
