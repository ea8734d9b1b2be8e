# SPDX-License-Identifier: Apache-2.0
"""A WebHDFS server over a local folder, in this process: what `arcflow` asks of HDFS, without Hadoop.

tests/hdfs runs on real Hadoop; this stands in where a test is about what Arcflow stores, not about HDFS.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_PREFIX = "/webhdfs/v1"


class FakeWebHdfs:
    """Serves `root` at `url`; `refuse` holds operations (``"CREATE"``) that are answered with an error."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refuse: set[str] = set()
        self.seen: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"webhdfs://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeWebHdfs:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(fake: FakeWebHdfs) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, status: int, body: bytes = b"", kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _json(self, value: Any, status: int = 200) -> None:
            self._answer(status, json.dumps(value).encode())

        def _error(self, status: int, name: str, text: str) -> None:
            self._json({"RemoteException": {"exception": name, "message": text}}, status)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while length := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _serve(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            name, body = query["op"], self._body()
            path = unquote(url.path.removeprefix(_PREFIX)).strip("/")
            local = fake.root / path
            fake.seen.append(f"{name} /{path}")
            if name in fake.refuse:
                return self._error(403, "AccessControlException", f"{name} is refused")
            if name in ("CREATE", "APPEND", "OPEN") and "onnode" not in query:
                if name != "CREATE" and not local.is_file():
                    return self._error(404, "FileNotFoundException", f"/{path}")
                where = f"http://{self.headers['Host']}{url.path}?{url.query}&onnode=1"
                return self._json({"Location": where})
            if name == "MKDIRS":
                local.mkdir(parents=True, exist_ok=True)
                return self._json({"boolean": True})
            if name == "CREATE":
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(body)
                return self._answer(201)
            if not local.exists():
                if name == "DELETE":
                    return self._json({"boolean": False})
                return self._error(404, "FileNotFoundException", f"/{path}")
            getattr(self, f"_on_{name.lower()}")(local, query, body)

        def _on_append(self, local: Path, query: dict[str, str], body: bytes) -> None:
            with local.open("ab") as file:
                file.write(body)
            self._answer(200)

        def _on_open(self, local: Path, query: dict[str, str], body: bytes) -> None:
            data = local.read_bytes()
            start = int(query.get("offset", 0))
            end = start + int(query.get("length", len(data)))
            self._answer(200, data[start:end], "application/octet-stream")

        def _on_getfilestatus(self, local: Path, query: dict[str, str], body: bytes) -> None:
            self._json({"FileStatus": _status("", local)})

        def _on_liststatus(self, local: Path, query: dict[str, str], body: bytes) -> None:
            found = [_status(p.name, p) for p in sorted(local.iterdir())] if local.is_dir() else []
            self._json({
                "FileStatuses": {"FileStatus": found or [_status("", local)] if local.is_file() else found}
            })  # fmt: skip

        def _on_delete(self, local: Path, query: dict[str, str], body: bytes) -> None:
            if local.is_dir() and query.get("recursive") != "true" and any(local.iterdir()):
                return self._error(403, "PathIsNotEmptyDirectoryException", local.name)
            shutil.rmtree(local) if local.is_dir() else local.unlink()
            self._json({"boolean": True})

        def _on_rename(self, local: Path, query: dict[str, str], body: bytes) -> None:
            target = fake.root / query["destination"].strip("/")
            if query.get("renameoptions") == "OVERWRITE":
                if target.is_dir() and any(target.iterdir()):
                    return self._error(403, "IOException", f"{target.name} is not empty")
                os.replace(local, target)
                return self._answer(200)
            if target.exists():
                return self._json({"boolean": False})
            local.rename(target)
            self._json({"boolean": True})

        do_GET = do_PUT = do_POST = do_DELETE = _serve

    return Handler


def _status(name: str, path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {
        "pathSuffix": name,
        "type": "DIRECTORY" if path.is_dir() else "FILE",
        "length": 0 if path.is_dir() else stat.st_size,
        "blockSize": 1 << 20,
        "modificationTime": int(stat.st_mtime * 1e3),
        "owner": "o",
        "permission": "644",
    }
