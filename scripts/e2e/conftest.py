"""One running server at a time, and the official OpenAI client on it."""
import contextlib
import ctypes
import dataclasses
import ipaddress
import os
import pathlib
import sys

import openai
import pytest

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SCRIPTS))
import models  # noqa: E402
from alone import raise_loopback  # noqa: E402
from lib import server  # noqa: E402

# In the order in which they are served; the first speaks chat and is the smallest.
MODELS = ("smollm2", "qwen2.5-coder", "gemma3")
CHAT_MODELS = ("smollm2", "qwen2.5-coder")
# One that generates and, served beside it, an encoder.
WITH_ENCODER = "qwen2.5-coder+minilm"
# What the model computes is then the same on every processor, but for ties.
EXACT = ("--activations", "int16", "--kv-dtype", "f32")
LOGS = server.REPO / ".cache" / "e2e"
READY_S = 300
CLONE_NEWNET = 0x40000000


@dataclasses.dataclass
class Served:
    """A model, the server that serves it, a client, and the encoder beside the model if there is one."""

    name: str
    options: tuple[str, ...]
    server: server.Server
    client: openai.OpenAI
    model: str
    encoder: str | None


def make_client(running, **options):
    """The official client, unmodified; it does not retry, so that a failure is seen."""
    return openai.OpenAI(base_url=f"{running.root}/v1", api_key="not-needed", timeout=300, max_retries=0, **options)


def start(name, log, arguments=()):
    """A server of a model, or of several whose names `+` joins."""
    path, *beside = [models.fetch(part, models.default_directory()) for part in name.split("+")]
    return server.Server(path, LOGS / log, arguments=[*beside, *arguments])


class Current:
    """The one server that runs; another model replaces it."""

    def __init__(self):
        self.served = None
        self.stack = contextlib.ExitStack()

    def serve(self, name, options=()):
        if self.served is not None and (self.served.name, self.served.options) == (name, options):
            return self.served
        self.close()
        running = self.stack.enter_context(start(name, f"{name}.log", ["--log-level", "trace", *options]))
        running.wait_ready(READY_S)
        client = self.stack.enter_context(make_client(running))
        model, *beside = [entry.id for entry in client.models.list()]
        self.served = Served(name, options, running, client, model, beside[0] if beside else None)
        return self.served

    def close(self):
        self.stack.close()
        self.served = None


def stay_on_loopback(event, arguments):
    """An audit hook: the client libraries may report, fetch and trace, but not from a machine on premise."""
    # Addresses of Unix sockets are text.
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
        if not ipaddress.ip_address(host).is_loopback:
            raise RuntimeError(f"a connection to {host} was tried")
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost"):
        raise RuntimeError(f"the address of {arguments[0]} was asked for")


def leave_network():
    """This process, and all that it starts, has loopback alone from now on, where that can be had: it takes root, and Linux."""
    if sys.platform != "linux" or ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        return False
    raise_loopback()
    return True


def pytest_configure(config):
    config.has_left_network = leave_network()
    # Proxies are for the outside; everything here is on loopback.
    os.environ["NO_PROXY"] = "127.0.0.1"
    sys.addaudithook(stay_on_loopback)
    server.end_on_sigterm()


def pytest_report_header(config):
    return "network: loopback alone" if config.has_left_network else "network: this machine's, which only root can leave"


def pytest_generate_tests(metafunc):
    if "served" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("models")
        metafunc.parametrize("served", marker.args if marker else MODELS, indirect=True)


def pytest_collection_modifyitems(items):
    """First what needs no server, then all tests of a model together, last those with servers of their own."""
    order_served = (*MODELS, WITH_ENCODER)

    def order(item):
        if "current" not in item.fixturenames:
            return -1
        name = item.callspec.params.get("served") if hasattr(item, "callspec") else None
        return order_served.index(name) if name else len(order_served)
    items.sort(key=order)


@pytest.fixture(scope="session")
def current():
    holder = Current()
    yield holder
    holder.close()


@pytest.fixture
def served(request, current):
    served = current.serve(request.param, EXACT if request.node.get_closest_marker("exact") else ())
    yield served
    assert served.server.process.poll() is None, f"the server died:\n{served.server.log_tail()}"


@pytest.fixture
def own_server(current):
    """Starts a server for one test alone: the shared one is stopped first."""
    current.close()
    with contextlib.ExitStack() as stack:
        yield beginning(stack)


@pytest.fixture(scope="module")
def module_server(current):
    """The same for the tests of one module, which all ask what one server has left."""
    current.close()
    with contextlib.ExitStack() as stack:
        yield beginning(stack)


def beginning(stack):
    """What starts a server that ends with the others on the stack."""
    def begin(name, log, arguments=()):
        running = stack.enter_context(start(name, log, arguments))
        running.wait_ready(READY_S)
        return running
    return begin
