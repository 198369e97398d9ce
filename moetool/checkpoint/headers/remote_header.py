"""The tensors of a safetensors file on a server, by requests for its header only."""

from __future__ import annotations

import re
from collections.abc import Mapping

from moetool.checkpoint.headers.safetensors_header import LENGTH_BYTES, parse_header, read_length
from moetool.checkpoint.headers.tensor_headers import TensorHeaders

# Most headers are shorter, so one request is enough.
_FIRST_BYTES = 100_000

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19})")


def read_remote_header(
    url: str, *, headers: Mapping[str, str], file: str, path: str
) -> TensorHeaders:
    """Return the tensors of a safetensors file on a server.

    No more than the header is read, even if the server sends the whole file.

    Args:
        url: The file's address.
        headers: HTTP headers that identify the user.
        file: The file's name in the checkpoint.
        path: The file, for error messages.

    Raises:
        InputError: The file is not a complete safetensors file.
        ValueError: The answer makes no sense.
        Exception: Whatever the Hub's HTTP library raises if there is no answer.
    """
    content, file_bytes = read_range(url, headers=headers, start=0, stop=_FIRST_BYTES)
    length = read_length(content[:LENGTH_BYTES], path=path, file_bytes=file_bytes)
    stop = LENGTH_BYTES + length
    if stop > len(content):
        rest, file_bytes_again = read_range(url, headers=headers, start=len(content), stop=stop)
        if file_bytes_again != file_bytes:
            raise ValueError(f"{file} of {file_bytes} bytes, and then of {file_bytes_again}")
        content += rest
    tensors = parse_header(content[LENGTH_BYTES:stop], file=file, file_bytes=file_bytes, path=path)
    return TensorHeaders(tensors=tensors, file_bytes={file: file_bytes})


def read_range(url: str, *, headers: Mapping[str, str], start: int, stop: int) -> tuple[bytes, int]:
    """Return a file's bytes from `start` up to `stop` or its end, and the length of the file."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    # Without compression, so that bytes and lengths are those of the file.
    asked = {**headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with get_session().stream(
        "GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        if response.status_code == 206:
            content_range = response.headers.get("Content-Range", "")
            found = _CONTENT_RANGE.fullmatch(content_range)
            if found is None or int(found[1]) != start:
                raise ValueError(f"Content-Range '{content_range}' for {asked['Range']}")
            skipped, file_bytes = start, int(found[2])
        else:
            skipped, file_bytes = 0, int(response.headers.get("Content-Length", ""))
        stop = min(stop, file_bytes)
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if skipped + len(content) >= stop:
                break
    if skipped + len(content) < stop:
        raise ValueError(f"{len(content)} bytes for {asked['Range']}")
    return bytes(content[start - skipped : stop - skipped]), file_bytes
