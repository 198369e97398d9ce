"""Detection of a file's format by its content, whatever its name."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moetool.choices import take_path
from moetool.errors import InputError
from moetool.interchange.imports.contents import LOADS, TRACE, find_content
from moetool.interchange.imports.formats import FORMATS, Format
from moetool.interchange.imports.reading.text import quote
from moetool.plain import Tabular, make_plain, show_fields
from moetool.printable import printable
from moetool.wording import join_words

_FILES_NAMED = 4
_HINT = (
    "Name a recording of SGLang, vLLM, Megatron-LM, TensorRT-LLM, llama.cpp or another tool that "
    "docs/traces/import.md lists."
)


@dataclass(frozen=True)
class Detection(Tabular):
    """A file's format.

    Attributes:
        path: The file or folder.
        format: As `moetool import` names it; None if it can't be imported.
        title: What the file is.
        kind: `trace` or `load table`; None if it is neither.
        gives: What a trace or load table from it has.
        lacks: What it doesn't have.
        command: The command line that imports it, or that reads it as it is; None without one.
    """

    path: str
    format: str | None
    title: str
    kind: str | None = None
    gives: str | None = None
    lacks: str | None = None
    command: str | None = None

    __repr__ = show_fields

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the one row."""
        words = dict.fromkeys(("format", "kind", "gives", "lacks", "command"), str | None)
        return {"path": str, "title": str, **words}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row."""
        return [{name: getattr(self, name) for name in self.column_types()}]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        plain: dict[str, Any] = make_plain(self)
        return plain


def detect_format(path: str | Path) -> Detection:
    """Return what a file or folder is, by its content.

    Args:
        path: A file, or the folder of a format that writes one.

    Raises:
        InputError: It can't be read.
    """
    path = take_path(path, name="file")
    found = find_content(path)
    if found in FORMATS:
        return _describe(path, FORMATS[found])
    if found == TRACE:
        command = f"moetool validate {_shell(path)}"
        return Detection(str(path), None, "a trace of moetool", "trace", command=command)
    if found == LOADS:
        title = "a load table of moetool"
        return Detection(
            str(path), None, title, "load table", command=f"moetool balance {_shell(path)}"
        )
    return Detection(str(path), None, found)


def detect_formats(paths: Sequence[str | Path]) -> list[Detection]:
    """Return what each of several files or folders is, even if some of them can't be read.

    Raises:
        InputError: There is only one, and it can't be read.
    """
    if len(paths) == 1:
        return [detect_format(paths[0])]
    found = []
    for path in paths:
        try:
            found.append(detect_format(path))
        except InputError as error:
            reason = error.message.removeprefix(f"{quote(Path(path))} ").rstrip(".")
            found.append(Detection(str(path), None, f"a file that {reason}"))
    return found


def refuse_unknown(found: Sequence[Detection]) -> None:
    """Raise an error that names the files of no known format, if there are any.

    Raises:
        InputError: A file is neither a trace nor a load table, and can't become one.
    """
    unknown = [each for each in found if each.kind is None]
    if not unknown:
        return
    if len(found) == 1:
        raise InputError(f"{quote(Path(unknown[0].path))} is {unknown[0].title}.", hint=_HINT)
    names = [quote(Path(each.path)) for each in unknown[:_FILES_NAMED]]
    more = len(unknown) - len(names)
    shown = join_words([*names, *([f"{more} more"] if more else [])], last="and")
    raise InputError(
        f"{len(unknown)} of {len(found)} files can't be imported: {shown}.", hint=_HINT
    )


def _describe(path: Path, known: Format) -> Detection:
    output = "trace.parquet" if known.kind == "trace" else "loads.parquet"
    parts = ["moetool import", known.name, _shell(path), known.options, f"-o {output}"]
    return Detection(
        path=str(path),
        format=known.name,
        title=known.title,
        kind=known.kind,
        gives=known.gives,
        lacks=known.lacks,
        command=" ".join(part for part in parts if part),
    )


def _shell(path: Path) -> str:
    return shlex.quote(printable(path, max_length=500))


def choose_format(names: tuple[str, ...], paths: tuple[Path, ...]) -> Format:
    """Return the one format that some files have, among those that a name stands for.

    Raises:
        InputError: The files are of other formats, or of several.
    """
    if len(names) == 1:
        return FORMATS[names[0]]
    found: dict[str, Path] = {}
    for path in paths:
        detection = detect_format(path)
        if detection.format not in names:
            raise InputError(
                f"{quote(path)} is {detection.title}.",
                hint=f"Name the format: {', '.join(names)}.",
            )
        found.setdefault(detection.format, path)
    if len(found) > 1:
        (first, one), (second, other), *_ = found.items()
        raise InputError(
            f"{quote(one)} is of the format {first}, and {quote(other)} of {second}.",
            hint="Import files of one format at a time.",
        )
    return FORMATS[next(iter(found))]


def find_other_format(paths: Sequence[Path], chosen: Format) -> str | None:
    """Return a hint for files that couldn't be imported as the chosen format but are of another.

    Args:
        paths: The files.
        chosen: The format that the user named.
    """
    for path in paths:
        try:
            found = detect_format(path)
        except InputError:
            continue
        if found.format is not None and found.format != chosen.name:
            return f"Import {quote(path)} as {found.format}: it looks like {found.title}."
        if found.format is None and found.kind is not None:
            return f"Leave out {quote(path)}, which is {found.title} already."
    return None
