"""More clients at one moment than a server has accepted before, while it gets no time of its machine."""
import contextlib
import resource
import signal
import socket

CLIENTS, FILES = 400, 256
# Of a server that is told no other number.
CONNECTIONS_MAX = 1024
PATIENCE_S = 60
REQUEST = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_a_burst_is_taken_whole(own_server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What a shell gives may be too little: the server takes more.
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        server = own_server("smollm2", "burst.log")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    raised, _ = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    assert raised > CONNECTIONS_MAX or raised == hard
    with contextlib.ExitStack() as opened:
        server.process.send_signal(signal.SIGSTOP)
        try:
            # Without a place to wait, one would not connect before its time is over.
            clients = [opened.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)) for _ in range(CLIENTS)]
            for client in clients:
                client.sendall(REQUEST)
        finally:
            server.process.send_signal(signal.SIGCONT)
        answers = [client.makefile("rb").read() for client in clients]
    assert [answer for answer in answers if not answer.startswith(b"HTTP/1.1 200 ")] == []
