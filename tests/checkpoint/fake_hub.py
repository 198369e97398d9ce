"""A Hub of one repository on the loopback address, for tests of the download.

    python -m tests.checkpoint.fake_hub FOLDER

Serves FOLDER as `org/model` and prints its own address. Answers what huggingface_hub asks for:
the repository's description, its tree, and its files.
"""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "org/model"


class FakeHub(BaseHTTPRequestHandler):
    """Answers for one repository with two names for its one commit."""

    folder: Path

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        api, files = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/"
        if path == api or path.startswith(f"{api}/revision/"):
            revision = path.removeprefix(api).removeprefix("/revision/") or "main"
            if revision not in ("main", COMMIT):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=with_body)
            else:
                self._send(200, self._describe(), {}, with_body=with_body)
        elif path.startswith(f"{api}/tree/"):
            self._send(200, self._list_tree(), {}, with_body=with_body)
        elif path.startswith(files):
            revision, _, name = path.removeprefix(files).partition("/")
            file = self.folder / name
            if revision not in ("main", COMMIT) or not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body=with_body)
            else:
                content = file.read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                headers = {"ETag": etag, "X-Repo-Commit": COMMIT}
                self._send(200, content, headers, with_body=with_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)

    def _describe(self) -> bytes:
        siblings = [{"rfilename": file.name, "size": file.stat().st_size} for file in self._files()]
        description = {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "tags": []}
        return json.dumps(description).encode()

    def _list_tree(self) -> bytes:
        return json.dumps(
            [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in self._files()
            ]
        ).encode()

    def _files(self) -> list[Path]:
        return sorted(file for file in self.folder.iterdir() if file.is_file())

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)


def main() -> None:
    """Serve until ended."""
    FakeHub.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
