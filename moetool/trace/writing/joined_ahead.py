"""Join parts while others are still being made, so that little is left to do in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.errors import MoetoolError
from moetool.output.targets import new_file
from moetool.trace.writing.formats.joined_files import ParquetJoin


class JoinAhead:
    """A Parquet file to which parts are added in another thread, as soon as they are in order.

    What goes wrong meanwhile is not reported: the file is given up, and whoever wants it joins the
    parts anew.

    Args:
        target: Path of the new file.
        schema: Schema of the parts.
        check: Is called with the metadata of each part, and raises an error to refuse it.

    Raises:
        OSError: The file can't be made.
    """

    def __init__(
        self, target: Path, schema: pa.Schema, *, check: Callable[[pq.FileMetaData], None]
    ) -> None:
        self._target = target
        self._held = ExitStack()
        file = self._held.enter_context(new_file(target))
        self._join = self._held.enter_context(ParquetJoin(file, schema, check=check))
        self._adding = ThreadPoolExecutor(1)
        self._added: list[Future[None]] = []

    def add(self, parts: Sequence[Path]) -> None:
        """Add parts soon, after those that were added before."""
        self._added += [self._adding.submit(self._join.add, part) for part in parts]

    def finish(self, parts: Sequence[Path], footer: Mapping[bytes, bytes]) -> bool:
        """Add the parts that are missing, write the footer, and return whether that worked.

        It doesn't if the parts so far are others, or if one couldn't be added. Then the file is gone.

        Args:
            parts: All parts, in order.
            footer: Metadata of the file.
        """
        try:
            for added in self._added:
                added.result()
            num_parts = len(self._join.parts)
            if list(parts[:num_parts]) != self._join.parts:
                self.give_up()
                return False
            for part in parts[num_parts:]:
                self._join.add(part)
            self._join.finish(footer)
            self._adding.shutdown()
            self._held.close()
        except (OSError, MoetoolError):
            self.give_up()
            return False
        return True

    def give_up(self) -> None:
        """End the thread, and remove the file."""
        self._adding.shutdown(cancel_futures=True)
        with suppress(OSError):
            self._held.close()
        with suppress(OSError):
            self._target.unlink(missing_ok=True)
