"""A Hub of one checkpoint on the loopback address, well-behaved and not.

    python -m tests.checkpoint.fake_hub FOLDER [LOG]

Serves FOLDER as `org/model` and prints its own address. Answers what huggingface_hub asks for:
the repository's description, its tree, and its files, whole or in part. Under the names in
`MISBEHAVIOURS` it serves the same folder and goes wrong as that name says. LOG gets a line for each
request, with the path and the range that was asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "org/model"

# What goes wrong: with the description, with config.json, or with the weight files.
MISBEHAVIOURS = (
    "description-fails",
    "description-is-html",
    "description-is-a-list",
    "description-names-no-commit",
    "description-names-no-config",
    "description-names-no-weights",
    "description-lacks-a-shard",
    "description-never-comes",
    "description-never-ends",
    "config-fails",
    "config-is-html",
    "config-never-comes",
    "gated",
    "weights-fail",
    "weights-are-html",
    "weights-come-whole",
    "weights-break-off",
    "weights-change-their-length",
    "weights-come-short",
    "weights-come-from-elsewhere",
    "weights-are-one-byte-too-long",
    "weights-never-come",
    "weights-never-end",
)

HTML = b"<!doctype html><title>Sign in to this network</title>"
PATIENCE_S = 600
CHUNK_BYTES = 1 << 16


class FakeHub(BaseHTTPRequestHandler):
    """Answers for repositories with two names for their one commit."""

    folder: Path
    log: Path | None = None

    def do_GET(self) -> None:
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{self.path} {self.headers.get('Range')}\n")
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        self.with_body = with_body
        path = urlsplit(self.path).path
        found = re.fullmatch(r"(/api/models)?/(org/[\w-]+)(/.*)?", path)
        repositories = {REPOSITORY, *(f"org/{name}" for name in MISBEHAVIOURS)}
        if found is None or found[2] not in repositories:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        self.behaviour = found[2].removeprefix("org/")
        rest = found[3] or ""
        if found[1] is None:
            revision, _, name = rest.removeprefix("/resolve/").partition("/")
            self._answer_file(self.folder / name, revision)
        elif rest.startswith("/tree/"):
            self._send(200, self._list_tree())
        elif (rest.removeprefix("/revision/") or "main") in ("main", COMMIT):
            self._answer_description()
        else:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def _answer_description(self) -> None:
        names = {file.name: file.stat().st_size for file in self._files()}
        commit: str | None = COMMIT
        match self.behaviour.removeprefix("description-"):
            case "fails":
                return self._send(500, b"")
            case "is-html":
                return self._send(200, HTML)
            case "is-a-list":
                return self._send(200, b"[1, 2]")
            case "never-comes":
                return time.sleep(PATIENCE_S)
            case "never-ends":
                return self._drip()
            case "names-no-commit":
                commit = None
            case "names-no-config":
                del names["config.json"]
            case "names-no-weights":
                names = {name: size for name, size in names.items() if name == "config.json"}
            case "lacks-a-shard":
                names.pop(next(name for name in names if name.endswith(".safetensors")))
        siblings = [{"rfilename": name, "size": size} for name, size in names.items()]
        # Some programs look into `config` for what kind of model it is.
        config = {"model_type": "mixtral"}
        description = {
            "id": REPOSITORY,
            "sha": commit,
            "siblings": siblings,
            "tags": [],
            "config": config,
        }
        return self._send(200, json.dumps(description).encode())

    def _answer_file(self, file: Path, revision: str) -> None:
        if revision not in ("main", COMMIT) or not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        kind = {".safetensors": "weights"}.get(file.suffix, file.stem)
        behaviour = self.behaviour
        if behaviour == "gated":
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if behaviour in (f"{kind}-fails", f"{kind}-fail"):
            return self._send(500, b"")
        if behaviour in (f"{kind}-never-comes", f"{kind}-never-come"):
            return time.sleep(PATIENCE_S)
        etag = hashlib.sha256(f"{file.name} {file.stat().st_size} {behaviour}".encode()).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        if behaviour in (f"{kind}-is-html", f"{kind}-are-html"):
            return self._send(200, HTML, headers)
        if kind == "weights" and behaviour == "weights-never-end":
            return self._drip()
        return self._send_file(file, headers)

    def _send_file(self, file: Path, headers: dict[str, str]) -> None:
        """Send the part of a file that is asked for, as far as the repository behaves."""
        behaviour = self.behaviour if file.suffix == ".safetensors" else ""
        size = file.stat().st_size
        start, stop, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is not None and behaviour != "weights-come-whole":
            start, stop, status = int(asked[1]), min(int(asked[2]) + 1, size), 206
            said = start + 1 if behaviour == "weights-come-from-elsewhere" else start
            more = {"weights-are-one-byte-too-long": 1, "weights-change-their-length": start}
            total = size + more.get(behaviour, 0)
            headers = {**headers, "Content-Range": f"bytes {said}-{stop - 1}/{total}"}
        if behaviour == "weights-come-short":
            stop = start + 20
        self._start(status, stop - start, headers)
        if behaviour == "weights-break-off":
            stop = start + 20
        if self.with_body:
            with file.open("rb") as opened:
                opened.seek(start)
                while start < stop:
                    chunk = opened.read(min(CHUNK_BYTES, stop - start))
                    start += len(chunk)
                    self.wfile.write(chunk)

    def _drip(self) -> None:
        """Send one byte after the other, each in time for any timeout between two of them."""
        self._start(200, PATIENCE_S, {})
        for _ in range(PATIENCE_S):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.2)

    def _list_tree(self) -> bytes:
        return json.dumps(
            [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in self._files()
            ]
        ).encode()

    def _files(self) -> list[Path]:
        return sorted(file for file in self.folder.iterdir() if file.is_file())

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self._start(status, len(content), headers or {})
        if self.with_body:
            self.wfile.write(content)

    def _start(self, status: int, num_bytes: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(num_bytes))
        self.end_headers()


class QuietServer(ThreadingHTTPServer):
    """A server that does not mind when a client hangs up."""

    def handle_error(self, *_: object) -> None:
        pass


def main() -> None:
    """Serve until ended."""
    FakeHub.folder = Path(sys.argv[1])
    FakeHub.log = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    server = QuietServer(("127.0.0.1", 0), FakeHub)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
