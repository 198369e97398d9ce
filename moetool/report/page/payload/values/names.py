"""Names and texts as the page shows them: without what would reveal a machine or steer a browser."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath, PureWindowsPath

from moetool.analysis.comparison.result import Comparison
from moetool.analysis.tokens.pieces import read_piece, read_pieces
from moetool.printable import printable

# A longer piece or prompt id is cut.
_LONGEST_PIECE = 120
_LONGEST_NAME = 80
_LONGEST_SENTENCE = 1000
_LOOKS_LOCAL = re.compile(r"^([~./\\]|[A-Za-z]:[\\/])")
# A quoted text that may be a path, or a path of at least two parts that is not quoted.
_PATH = re.compile(
    r"(?<![\w'])'(?P<quoted>[^'\n]*[/\\][^'\n]*)'"
    r"|(?<![\w)/\\.:<~])(?P<bare>(?:~|[A-Za-z]:)?(?:[/\\][\w.+@~-]*[\w+@~-]){2,})"
)
# Names of files, which one that stands for a model on the Hub doesn't end in.
_SUFFIXES = (".parquet", ".csv", ".json", ".jsonl", ".html", ".txt", ".py", ".safetensors", ".pt")
_PART = "·"
# Symbols for characters that have no shape.
_SYMBOLS = {"\n": "⏎\n", "\r": "␍", "\t": "⇥\t", "\x1b": "␛", "\x00": "␀"}


def show_path(path: str | None) -> str | None:
    """Return the last part of a path, which reveals no folder of the machine."""
    if path is None:
        return None
    name = PureWindowsPath(path).name if "\\" in path else PurePath(path).name
    return printable(name, max_length=_LONGEST_NAME)


def show_model(model: str | None) -> str | None:
    """Return the name of a model; of a local folder, its last part."""
    if model is None:
        return None
    if _LOOKS_LOCAL.match(model) or model.count("/") > 1:
        return show_path(model.rstrip("/\\"))
    return printable(model, max_length=_LONGEST_NAME)


def show_sentence(sentence: str) -> str:
    """Return a note or a reason; of the paths that it names, only the last parts."""
    return printable(_PATH.sub(_shorten_path, sentence), max_length=_LONGEST_SENTENCE)


def _shorten_path(found: re.Match[str]) -> str:
    quoted, bare = found["quoted"], found["bare"]
    if quoted is None:
        return show_path(bare) or ""
    is_file = PurePath(quoted).suffix in _SUFFIXES
    shown = show_path(quoted) if is_file else show_model(quoted)
    return f"'{shown}'"


def show_other(comparison: Comparison) -> str:
    """Return what a trace is compared with: its file, else its model."""
    other = comparison.other
    return show_path(other.trace) or show_model(other.model) or "another trace"


def show_name(name: str) -> str:
    """Return a prompt's id or a domain's name."""
    return printable(name, max_length=_LONGEST_NAME)


def show_piece(piece: str | None) -> str | None:
    """Return the text that a token stands for; invisible characters become visible.

    Line breaks and tabs are kept after their symbols.
    """
    return None if piece is None else _show_text(read_piece(piece))


def show_pieces(pieces: Sequence[str | None]) -> list[str | None]:
    """Return the texts of tokens that follow each other, as `show_piece` does.

    A token that holds a part of a character, which a later one completes, is shown as a dot.
    """
    return [
        None if text is None else _show_text(text) if text or not piece else _PART
        for text, piece in zip(read_pieces(pieces), pieces, strict=True)
    ]


def _show_text(text: str) -> str:
    if len(text) > _LONGEST_PIECE:
        text = f"{text[:_LONGEST_PIECE]}…"
    return "".join(_show_character(letter) for letter in text)


def _show_character(letter: str) -> str:
    if letter in _SYMBOLS:
        return _SYMBOLS[letter]
    kind = unicodedata.category(letter)
    # Joiners inside of words are needed to read Indic and Arabic scripts and emoji.
    if letter in "\u200c\u200d" or kind not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return letter
    return f"⟨U+{ord(letter):04X}⟩"
