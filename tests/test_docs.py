"""The documentation's console blocks show what the commands really print."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from moetool.trace.companions import saliency_path
from tests.command import REPOSITORY
from tests.docs.shown import run_shown_here
from tools.refresh_docs import (
    DOCUMENTS,
    Block,
    make_workplace,
    read_blocks,
    run_shown,
    without_timings,
)

BLOCKS = read_blocks()
# The two lines of the README's first screen, and one whose reader closes the pipe, run as a user
# runs them, each in its own process. The others save importing torch.
REAL = [
    block
    for block in BLOCKS
    if block.document == "README.md" and re.search(r"pip install|specialize", block.command)
]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the commands, in which later blocks find what earlier ones wrote."""
    return make_workplace(tmp_path_factory.mktemp("docs"))


def write_inputs(block: Block, *, workplace: Path) -> None:
    """Run the earlier blocks that write a file which a block reads, unless the file is there."""
    for earlier in BLOCKS[: BLOCKS.index(block)]:
        missing = [name for name in earlier.written if not (workplace / name).exists()]
        if set(missing) & set(block.command.split()):
            write_inputs(earlier, workplace=workplace)
            run_shown_here(earlier.command, folder=workplace)


def remove_outputs(block: Block, *, workplace: Path) -> None:
    for name in block.written:
        if (workplace / name).is_dir():
            shutil.rmtree(workplace / name)
        (workplace / name).unlink(missing_ok=True)
        saliency_path(workplace / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: f"{block.document}-{BLOCKS.index(block)}"
)
def test_the_output_shown_is_the_output_of_the_command(block: Block, workplace: Path) -> None:
    remove_outputs(block, workplace=workplace)
    write_inputs(block, workplace=workplace)
    run = run_shown if block in REAL else run_shown_here
    real = run(block.command, folder=workplace)
    assert without_timings(block.output) == without_timings(real), f"{block.document} is stale"


def test_some_commands_run_as_a_user_runs_them() -> None:
    assert [block.command.split()[1] for block in REAL] == ["pip", "pip", "moetool"]


def test_every_document_with_a_console_block_is_run() -> None:
    shown = {
        str(page.relative_to(REPOSITORY))
        for page in PAGES
        if re.search(r"^```console\n\$ ", page.read_text(encoding="utf-8"), re.M)
    }
    assert shown == {block.document for block in BLOCKS} == set(DOCUMENTS)
