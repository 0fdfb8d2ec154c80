"""A chat on a machine without any network: run inside `unshare -n`. Prints what was answered, as JSON.

    unshare -n python scripts/e2e/alone.py MODEL LOG [OPTION ...]
"""
import errno
import fcntl
import json
import pathlib
import socket
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from lib.server import Server  # noqa: E402

# linux/sockios.h, linux/if.h
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
READY_S = 300


def raise_loopback():
    """What `ip link set lo up` does, where there is no such program."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def main():
    model, log, *options = sys.argv[1:]
    raise_loopback()
    with socket.socket() as probe:
        assert probe.connect_ex(("192.0.2.1", 443)) == errno.ENETUNREACH, "there is a network here"
    with Server(model, log, arguments=options) as server:
        server.wait_ready(READY_S)
        answer = server.post("/v1/chat/completions", {"model": server.model_name(), "max_tokens": 8, "temperature": 0,
                                                      "messages": [{"role": "user", "content": "Hi"}]})
        ready = json.loads(server.get("/readyz"))
    print(json.dumps({"answer": answer, "ready": ready}))


if __name__ == "__main__":
    main()
