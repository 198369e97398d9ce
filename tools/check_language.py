"""Find turns of phrase that a reader of plain English stumbles over.

    python tools/check_language.py            check all Python and Markdown files
    python tools/check_language.py PATH ...   check these files and folders

Docstrings, comments and string literals of Python files are read, and Markdown outside of code.
Each finding is printed as `file:line: mark: sentence`; exit 1 if there is one. The list of marks
is short on purpose: each of them can be replaced in every sentence.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CHECKED = ("moetool", "tests", "benchmarks", "tools", "docs", "sample_prompts")
QUOTING = (
    "tools/check_language.py",
    "tests/tools/test_check_language.py",
)  # they name what is to be found

_MARKS = {
    "told": r"\btold\b",
    "is no X": r"\b(?<!there )(?:is|are|was|were) no (?!(?:longer|more|less|fewer|one)\b)\w",
    "beside": r"\bbeside\b",
    "but for": r"(?<!, )(?<!not )\bbut for\b",
    "likewise": r"\blikewise\b",
    "so many": r"\bso many\b",
    "of its own": r"\bof (?:its|their) own\b(?! accord)",
    "to be had": r"\b(?:can(?:not|'t)?|could|may|to) be (?:had|gone)\b",
    "some hundred": r"\bsome (?:dozens?|hundreds?|thousands?|tenths?)\b",
}
MARKS = {mark: re.compile(pattern, re.IGNORECASE) for mark, pattern in _MARKS.items()}
_OPENING = re.compile(r"(What|How|From|Which|Of)\b")
_ENTRY = re.compile(r"^(?P<indent> +)`*(?P<name>\w+)`*(?: \([^)]*\))?: (?P<text>\S.*)$")
_SECTION = re.compile(r"^(?P<indent> *)(Args|Attributes):$")
_SAYS_NOTHING = {"a", "an", "the", "its", "of", "this", "it", "how", "and", "as", "likewise"}


@dataclass(frozen=True)
class Text:
    """A run of prose with its line breaks."""

    text: str
    first_line: int  # in the file, from 1


@dataclass(frozen=True)
class Finding:
    """A mark and the sentence that holds it."""

    line: int
    mark: str
    sentence: str


def check_file(path: Path) -> list[Finding]:
    """Return the findings of a Python or Markdown file, in the order of its lines."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        texts, found = list(read_markdown(source, newest_only=path.name == "CHANGELOG.md")), []
    else:
        tree = ast.parse(source)
        texts = [*read_comments(source), *read_strings(tree)]
        found = [finding for text in read_docstrings(tree) for finding in check_docstring(text)]
    found += [finding for text in texts for finding in find_marks(text)]
    return sorted(found, key=lambda finding: finding.line)


def find_marks(text: Text) -> Iterator[Finding]:
    """Yield the marks in a run of prose, also where a line break parts their words."""
    lines = [line.strip(" #>") for line in text.text.split("\n")]
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    joined = " ".join(lines)
    for mark, pattern in MARKS.items():
        for match in pattern.finditer(joined):
            line = text.first_line + bisect_right(starts, match.start()) - 1
            yield Finding(line, mark, sentence_around(joined, match.start()))


def sentence_around(text: str, place: int) -> str:
    """Return the sentence of a text that a place lies in."""
    ends = [end.end() for end in re.finditer(r"[.!?:;](?= |$)", text)]
    start = max((end for end in ends if end <= place), default=0)
    stop = min((end for end in ends if end > place), default=len(text))
    return text[start:stop].strip()


def check_docstring(text: Text) -> Iterator[Finding]:
    """Yield what only docstrings are checked for: their first word, and lines that say nothing."""
    lines = text.text.splitlines()
    if lines and _OPENING.match(lines[0]):
        yield Finding(text.first_line, "opening", lines[0])
    section: int | None = None
    for number, line in enumerate(lines):
        if heading := _SECTION.match(line):
            section = len(heading["indent"])
        elif line.strip() and len(line) - len(line.lstrip()) <= (
            -1 if section is None else section
        ):
            section = None
        elif section is not None and (entry := _ENTRY.match(line)):
            following = lines[number + 1] if number + 1 < len(lines) else ""
            continued = len(following) - len(following.lstrip()) > len(entry["indent"])
            if not continued and only_repeats(entry["name"], entry["text"]):
                yield Finding(text.first_line + number, "says nothing", line.strip())


def only_repeats(name: str, text: str) -> bool:
    """Return whether a description has no word that its name does not have."""
    words = {word.rstrip("s") for word in re.findall(r"\w+", text.lower())}
    return words <= {word.rstrip("s") for word in {*name.lower().split("_"), *_SAYS_NOTHING}}


def read_comments(source: str) -> Iterator[Text]:
    """Yield the comments of a Python file; those on lines that follow each other as one."""
    lines: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if lines and line != last + 1:
            yield Text("\n".join(lines), last - len(lines) + 1)
            lines = []
        lines.append(token.string)
        last = line
    if lines:
        yield Text("\n".join(lines), last - len(lines) + 1)


def read_strings(tree: ast.AST) -> Iterator[Text]:
    """Yield every string literal, docstrings among them; an f-string in one piece."""
    parts: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                constants = [value for value in values if isinstance(value, ast.Constant)]
                parts.update(id(constant) for constant in constants)
                words = [v.value if isinstance(v, ast.Constant) else "{}" for v in values]
                yield Text("".join(map(str, words)), node.lineno)
            case ast.Constant(value=str(value)) if id(node) not in parts:
                yield Text(value, node.lineno)


def read_docstrings(tree: ast.AST) -> Iterator[Text]:
    """Yield the docstrings of a module, its classes and functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (docstring := ast.get_docstring(node, clean=False)):
            yield Text(docstring, node.body[0].lineno)


def read_markdown(source: str, *, newest_only: bool) -> Iterator[Text]:
    """Yield the paragraphs of a Markdown file without its code.

    With `newest_only`, stop after the first section of the second level: the released sections of
    a changelog stay as they were published.
    """
    paragraph: list[str] = []
    in_code = False
    sections = 0
    number = 0
    for number, line in enumerate(source.splitlines(), start=1):
        sections += line.startswith("## ") and not in_code
        if newest_only and sections > 1:
            number -= 1
            break
        fence = line.lstrip().startswith("```")
        in_code ^= fence
        if not (in_code or fence) and line.strip():
            paragraph.append(re.sub(r"`[^`]*`", "`…`", line))
        elif paragraph:
            yield Text("\n".join(paragraph), number - len(paragraph))
            paragraph = []
    if paragraph:
        yield Text("\n".join(paragraph), number - len(paragraph) + 1)


def list_files(paths: list[Path]) -> Iterator[Path]:
    """Yield the files to check: those named, and those in the folders named."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for suffix in ("py", "md") for p in path.rglob(f"*.{suffix}"))
        else:
            yield path


def main(arguments: list[str]) -> int:
    """Print what is found and return the exit code."""
    default = [REPOSITORY / name for name in CHECKED] + sorted(REPOSITORY.glob("*.md"))
    found = 0
    for path in list_files([Path(argument).resolve() for argument in arguments] or default):
        name = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
        if str(name) in QUOTING:
            continue
        for finding in check_file(path):
            print(f"{name}:{finding.line}: {finding.mark}: {finding.sentence}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
