"""A model hub on loopback that has one file: what of the Hugging Face Hub's interface `rempart pull` uses, for machines that reach none.

    python3 hub_stand_in.py PORT REPOSITORY FILE SHA256

The file is served as what it is, under its own name; the revision is whichever is asked for. `server/hub/tests/pull` has a stand-in that
fails in every way.
"""
import http.server
import json
import pathlib
import re
import shutil
import sys


class Hub(http.server.BaseHTTPRequestHandler):
    """`repository`, `file` and `sha256` are set by who starts it."""

    protocol_version = "HTTP/1.1"
    repository, file, sha256 = "", pathlib.Path(), ""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.partition("?")[0]
        if match := re.fullmatch(rf"/api/models/{re.escape(self.repository)}/revision/(\w+)", path):
            self.tell({"id": self.repository, "sha": match[1]})
        elif re.fullmatch(rf"/api/models/{re.escape(self.repository)}/tree/\w+", path):
            size = self.file.stat().st_size
            self.tell([{"type": "file", "path": self.file.name, "size": size, "oid": "0" * 40,
                        "lfs": {"oid": self.sha256, "size": size, "pointerSize": 130}}])
        elif re.fullmatch(rf"/{re.escape(self.repository)}/resolve/\w+/{re.escape(self.file.name)}", path):
            self.give(body)
        else:
            self.send_error(404)

    def tell(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def give(self, body):
        size = self.file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and int(asked[1]) < size else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(size - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if body:
            with self.file.open("rb") as content:
                content.seek(start)
                shutil.copyfileobj(content, self.wfile)

    def log_message(self, *_):
        pass


def main():
    port, Hub.repository, file, Hub.sha256 = sys.argv[1:]
    Hub.file = pathlib.Path(file)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Hub).serve_forever()


if __name__ == "__main__":
    main()
