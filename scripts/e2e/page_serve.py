"""`rempart serve` as a documentation page's commands have it: at work when the next command begins, and gone when the next one serves.

    REMPART_BINARY=FILE python scripts/e2e/page_serve.py serve ARGUMENT ...

A reader leaves it running and goes on in another terminal. Prints what the server itself prints; its log is server.log in the present
folder, and ends up on standard error when it does not become ready.
"""
import contextlib
import os
import pathlib
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.request

READY_S = 60
PID, OUT, LOG = (pathlib.Path(f"server.{end}") for end in ("pid", "out", "log"))


def end_the_one_before():
    if not PID.exists():
        return
    pid = int(PID.read_text())
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + READY_S
    while pathlib.Path(f"/proc/{pid}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def trusting():
    """TLS that takes any certificate, and shows the client's where the page has made one."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if pathlib.Path("client.pem").exists():
        context.load_cert_chain("client.pem", "client-key.pem")
    return context


def is_ready(context):
    told = re.search(r"listening.* address=\S+:(\d+) tls=(\w+)", LOG.read_text())
    if not told:
        return False
    scheme = "https" if told[2] == "true" else "http"
    with contextlib.suppress(OSError), \
            urllib.request.urlopen(f"{scheme}://127.0.0.1:{told[1]}/readyz", timeout=5, context=context) as answer:
        return answer.status == 200
    return False


def main():
    end_the_one_before()
    with OUT.open("wb") as out, LOG.open("wb") as log:
        process = subprocess.Popen([os.environ["REMPART_BINARY"], *sys.argv[1:]], stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                                   start_new_session=True)
    PID.write_text(str(process.pid))
    context, deadline = trusting(), time.monotonic() + READY_S
    while not is_ready(context):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the server is not ready, its status is {process.returncode}:\n{LOG.read_text()}")
        time.sleep(0.05)
    print(OUT.read_text(), end="")


if __name__ == "__main__":
    main()
