"""The entries of a zip archive of torch: plain bytes one after the other, listed at its end.

Nothing is decompressed, so that nothing is larger than the file.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from moetool.checkpoint.pickled.stand_ins import PickleError

ZIP_START = b"PK\x03\x04"
_PICKLE = "data.pkl"
_SCRIPT = "constants.pkl"
# The list of entries has 46 bytes and a name for each: this is the list of a million or so.
_MAX_LIST_BYTES = 100_000_000
_END_START = b"PK\x05\x06"
_END_BYTES = 22
_END_64_START = b"PK\x06\x06"
_END_64_BYTES = 56
_LOCATOR_BYTES = 20
_MAX_COMMENT_BYTES = 1 << 16


@dataclass(frozen=True)
class ZipEntries:
    """The entries of an archive.

    Attributes:
        sizes: Bytes of the entries in its one folder, by their names there.
        archive: The open archive.
        folder: The folder's name.
    """

    sizes: Mapping[str, int]
    archive: zipfile.ZipFile
    folder: str

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Return the contents of an entry.

        Raises:
            PickleError: It is too long, or damaged.
        """
        if self.sizes[name] > max_bytes:
            raise PickleError(
                f"a pickle of {self.sizes[name]} bytes, where {max_bytes} are allowed"
            )
        try:
            return self.archive.read(f"{self.folder}/{name}")
        except (
            zipfile.BadZipFile,
            EOFError,
            NotImplementedError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:
            raise PickleError("an archive whose pickle is damaged") from error


def list_entries(file: BinaryIO, *, file_bytes: int) -> ZipEntries:
    """Return the entries of an archive.

    Raises:
        PickleError: It is not a complete archive of torch, has an entry twice, or compresses one.
    """
    if _find_list_bytes(file, file_bytes) > _MAX_LIST_BYTES:
        raise PickleError(f"a list of entries longer than {_MAX_LIST_BYTES:,} bytes")
    try:
        archive = zipfile.ZipFile(file)
    # A damaged list may fail in any of its fields, and lead to a place before the file.
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise PickleError(f"an archive that can't be read: {str(error)[:100]!r}") from error
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    if len(names) < len(entries):
        raise PickleError("an archive that has an entry twice")
    if any(entry.compress_type or entry.compress_size != entry.file_size for entry in entries):
        raise PickleError("an archive with compressed entries, which torch does not write")
    if sum(entry.file_size for entry in entries) > file_bytes:
        raise PickleError("an archive whose entries are longer than the file")
    folders = {name.partition("/")[0] for name in names if name.partition("/")[2] == _PICKLE}
    if len(folders) != 1:
        raise PickleError(f"an archive without one {_PICKLE}")
    (folder,) = folders
    sizes = {
        entry.filename.removeprefix(f"{folder}/"): entry.file_size
        for entry in entries
        if entry.filename.startswith(f"{folder}/")
    }
    if _SCRIPT in sizes:
        raise PickleError("a TorchScript program, which is more than weights")
    return ZipEntries(sizes, archive, folder)


def _find_list_bytes(file: BinaryIO, file_bytes: int) -> int:
    """Return the bytes that an archive's list of entries takes, as the end of the archive states.

    zipfile would allocate as much before it looks at the list.
    """
    num_bytes = min(file_bytes, _MAX_COMMENT_BYTES + _END_BYTES + _LOCATOR_BYTES + _END_64_BYTES)
    file.seek(file_bytes - num_bytes)
    tail = file.read(num_bytes)
    file.seek(0, os.SEEK_SET)
    stated = [0]
    at = tail.rfind(_END_START)
    if 0 <= at <= len(tail) - _END_BYTES:
        stated.append(int.from_bytes(tail[at + 12 : at + 16], "little"))
    at = tail.rfind(_END_64_START)
    if 0 <= at <= len(tail) - _END_64_BYTES:
        stated.append(int.from_bytes(tail[at + 40 : at + 48], "little"))
    sizes = [size for size in stated if size != 0xFFFFFFFF]
    return max(sizes)
