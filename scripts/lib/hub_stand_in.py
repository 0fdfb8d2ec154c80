"""A model hub on loopback that has one file: what of the Hugging Face Hub's interface `rempart pull` uses, for machines that reach none.

    python3 hub_stand_in.py PORT FILE SHA256 ORGANISATION/NAME/FILE ...

It is the only file of each of these repositories, under the name that stands there, at whichever revision is asked for.
`server/hub/tests/pull` has a stand-in that fails in every way.
"""
import http.server
import json
import pathlib
import re
import shutil
import sys

# What branches and tags name.
COMMIT = "0123456789" * 4


class Hub(http.server.BaseHTTPRequestHandler):
    """`names`, which has each repository's name of the file, `file` and `sha256` are set by who starts it."""

    protocol_version = "HTTP/1.1"
    names, file, sha256 = {}, pathlib.Path(), ""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.partition("?")[0]
        match = re.fullmatch(r"(/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/(\w+)(?:/(.+))?", path)
        api, repository, what, revision, name = match.groups() if match else (None,) * 5
        known = self.names.get(repository)
        if not known:
            self.send_error(404)
        elif api and what == "revision":
            self.tell({"id": repository, "sha": revision if re.fullmatch(r"[0-9a-f]{40}", revision) else COMMIT})
        elif api and what == "tree":
            size = self.file.stat().st_size
            self.tell([{"type": "file", "path": known, "size": size, "oid": "0" * 40,
                        "lfs": {"oid": self.sha256, "size": size, "pointerSize": 130}}])
        elif what == "resolve" and name == known:
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
    port, file, Hub.sha256, *places = sys.argv[1:]
    Hub.file = pathlib.Path(file)
    Hub.names = dict(place.rsplit("/", 1) for place in places)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Hub).serve_forever()


if __name__ == "__main__":
    main()
