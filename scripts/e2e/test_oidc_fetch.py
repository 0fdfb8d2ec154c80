"""The keys of a login, fetched from one on loopback as an operator or a timer does it."""
import contextlib
import datetime
import http.server
import ipaddress
import json
import os
import ssl
import subprocess
import threading
import time

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from lib.server import binary

DESCRIPTION = "/realms/company/.well-known/openid-configuration"
KEYS = "/realms/company/certs"


def jwks():
    """Two keys that verify, and one that encrypts."""
    own = []
    for name, algorithm, key in (("one", "ES256", ec.generate_private_key(ec.SECP256R1())),
                                 ("two", "EdDSA", ed25519.Ed25519PrivateKey.generate()),
                                 ("three", "ES256", ec.generate_private_key(ec.SECP256R1()))):
        own.append(jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True) | {"kid": name, "use": "sig"})
    own[2]["use"] = "enc"
    return {"keys": own}


class Login:
    """A login on loopback, whose answers a test changes."""

    def __init__(self, certificate=None):
        login = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                login.asked.append(self.path)
                answer = login.answers.get(self.path, 404)
                if callable(answer):
                    return answer(self)
                status, body = (answer, b"") if isinstance(answer, int) else (200, answer)
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", KEYS)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        scheme = "http"
        if certificate:
            scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.root = f"{scheme}://127.0.0.1:{self.server.server_port}"
        self.issuer, self.asked = f"{self.root}/realms/company", []
        self.set = json.dumps(jwks()).encode()
        self.answers = {KEYS: self.set}
        self.describe()

    def describe(self, **changed):
        description = {"issuer": self.issuer, "jwks_uri": self.root + KEYS, "token_endpoint": f"{self.root}/token"} | changed
        self.answers[DESCRIPTION] = json.dumps(description).encode()


@contextlib.contextmanager
def running(certificate=None):
    login = Login(certificate)
    thread = threading.Thread(target=login.server.serve_forever)
    thread.start()
    try:
        yield login
    finally:
        login.server.shutdown()
        login.server.server_close()
        thread.join()


@pytest.fixture
def login():
    with running() as login:
        yield login


def fetch(login, file, *options, fails=False, issuer=None):
    # Whoever sets a proxy for the outside has none for this machine.
    environment = os.environ | {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    done = subprocess.run([binary(), "oidc", "fetch", "--oidc-issuer", issuer or login.issuer, "-o", str(file), *options],
                          capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (done.returncode != 0) == fails, done.stderr + done.stdout
    return done.stderr if fails else done.stdout


def test_keys_are_fetched_and_told(login, tmp_path):
    file = tmp_path / "keys.json"
    said = fetch(login, file)
    assert "one  ES256\n" in said and "two  EdDSA\n" in said and "three" not in said
    assert f"2 of 3 keys of {login.root}{KEYS}" in said
    assert file.read_bytes() == login.set and file.stat().st_mode & 0o7777 == 0o644
    assert login.asked == [DESCRIPTION, KEYS]
    # By a rename: whoever has the old file open reads that to its end.
    with file.open("rb") as before:
        login.set = login.answers[KEYS] = json.dumps(jwks()).encode()
        fetch(login, file)
        assert before.read() != login.set == file.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]


def test_what_no_server_would_take_replaces_nothing(login, tmp_path):
    file = tmp_path / "keys.json"
    file.write_text("before")
    private = jwks()
    private["keys"][0]["d"] = "c2VjcmV0LW9mLXRoZS1sb2dpbg"
    encrypting = jwks()
    for key in encrypting["keys"]:
        key["use"] = "enc"
    for answer, why in ((json.dumps(private).encode(), "private or symmetric part"), (b'{"keys": []}', "none of its keys"),
                        (json.dumps(encrypting).encode(), "none of its keys"), (b"<html>", "no set of JSON Web Keys"),
                        (b" " * (256 * 1024 + 1), "more than 262144 bytes"), (404, "answered 404"), (302, "redirects are not followed")):
        login.answers[KEYS] = answer
        said = fetch(login, file, fails=True)
        assert why in said and "c2VjcmV0" not in said, said
    login.answers[KEYS] = login.set
    for changed, why in ((dict(issuer=f"{login.issuer}/"), "describes another login"),
                         (dict(issuer="https://login.example.org"), "describes another login"),
                         (dict(jwks_uri="http://login.example.org/certs"), "jwks_uri"), (dict(jwks_uri="file:///etc/passwd"), "jwks_uri"),
                         (dict(jwks_uri=f"http://anna@127.0.0.1{KEYS}"), "jwks_uri"), (dict(jwks_uri=None), "no description")):
        login.describe(**changed)
        assert why in fetch(login, file, fails=True), changed
    for answer, why in ((b"{}", "no description"), (301, "redirects are not followed"), (b" " * (256 * 1024 + 1), "more than 262144")):
        login.answers[DESCRIPTION] = answer
        assert why in fetch(login, file, fails=True)
    login.describe()
    assert "--oidc-issuer http://login.example.org" in fetch(login, file, fails=True, issuer="http://login.example.org")
    assert file.read_text() == "before" and [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]
    fetch(login, file)


def test_a_link_or_a_device_is_not_replaced(login, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        assert "no regular file" in fetch(login, tmp_path / name, fails=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "pipe").is_fifo()
    assert "--output" in fetch(login, tmp_path / "missing" / "keys.json", fails=True)


def test_a_login_that_says_nothing_is_not_waited_for_long(login, tmp_path):
    ended = threading.Event()

    def drip(handler):
        """A byte now and then: no silence is long."""
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not ended.wait(1):
                handler.wfile.write(b" ")
    login.answers[KEYS] = drip
    began = time.monotonic()
    try:
        assert "no answer in time" in fetch(login, tmp_path / "keys.json", fails=True)
    finally:
        ended.set()
    assert 25 < time.monotonic() - began < 60


def certified(folder):
    """An authority's file, and one with a certificate of its own for 127.0.0.1 and the key."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("Authority", "login")]
    made = []
    for at, extension in enumerate((x509.BasicConstraints(ca=True, path_length=None),
                                    x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]))):
        builder = x509.CertificateBuilder().subject_name(names[at]).issuer_name(names[0]).public_key(keys[at].public_key())
        builder = builder.serial_number(at + 1).not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1)).add_extension(extension, critical=at == 0)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key = keys[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(made[0])
    (folder / "login.pem").write_bytes(made[1] + key)
    return folder / "ca.pem", folder / "login.pem"


def test_a_company_s_own_authority_vouches_for_its_login(tmp_path):
    authority, certificate = certified(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = certified(tmp_path / "other")
    file = tmp_path / "keys.json"
    with running(certificate) as login:
        assert login.issuer.startswith("https://")
        assert "certificate" in fetch(login, file, fails=True)
        assert "certificate" in fetch(login, file, "--ca", str(other), fails=True)
        assert login.asked == [], "whoever is not who they should be is asked nothing"
        fetch(login, file, "--ca", str(authority))
        assert file.read_bytes() == login.set
        # Who began with TLS stays with it.
        login.describe(jwks_uri=f"http://127.0.0.1:{login.server.server_port}{KEYS}")
        assert "jwks_uri" in fetch(login, file, "--ca", str(authority), fails=True)
        for bad, why in ((tmp_path / "missing.pem", "No such file"), (file, "no certificate in it")):
            assert f"--ca {bad}: " in (said := fetch(login, file, "--ca", str(bad), fails=True)) and why in said
