"""Damaged Parquet files of prompts are either read, or refused in a short printable sentence."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moetool.errors import InputError
from moetool.tracing.prompts.files import PromptFields
from moetool.tracing.prompts.parquet import read_parquet
from moetool.tracing.prompts.prompts import read_prompts

TEXTS = pa.table(
    {"id": ["a", "b", "c"], "text": ["one", "two", "größer"], "domain": ["x", None, "y"]}
)
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
CONVERSATIONS = pa.table({"messages": [MESSAGES] * 3, "id": [1, 2, 3], "scores": [[0.5]] * 3})


def change_footer(path: Path, *, place: int, byte: int) -> None:
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    content[len(content) - 8 - length + place % length] = byte
    path.write_bytes(content)


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    table=st.sampled_from([TEXTS, CONVERSATIONS]),
    place=st.integers(0, 4_000),
    byte=st.integers(0, 255),
)
# pyarrow 26 ends the process where it is asked for columns of these.
@example(table=TEXTS, place=19, byte=36)
@example(table=TEXTS, place=20, byte=0)
@example(table=CONVERSATIONS, place=17, byte=51)
@example(table=CONVERSATIONS, place=18, byte=60)
def test_a_footer_with_a_changed_byte(
    table: pa.Table, place: int, byte: int, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.parquet"
    pq.write_table(table, path, row_group_size=2)
    change_footer(path, place=place, byte=byte)
    try:
        read_prompts(str(path), chat=True)
    except InputError as error:
        for text in (error.message, error.hint, *error.facts):
            assert text.isprintable()
            assert len(text) < 700
            # Damage is not a file that may not be read.
            assert "permissions" not in text


def test_a_damaged_footer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    pq.write_table(TEXTS, path)
    change_footer(path, place=20, byte=0)
    with pytest.raises(InputError) as caught:
        read_prompts(str(path))
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith(f"{path}:1: not a Parquet file: ")
    assert caught.value.hint == "Write the file again."


class BrokenDisk(io.BytesIO):
    """A file whose pages can't be read, although its footer can."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() < 100:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size)


def test_an_error_of_the_system_is_not_taken_for_damage(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    pq.write_table(TEXTS, path)
    with pytest.raises(OSError, match="Input/output error"):
        list(read_parquet(BrokenDisk(path.read_bytes()), name="prompts", fields=PromptFields()))
