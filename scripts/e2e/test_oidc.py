"""Tokens of a login, made by another implementation and shown by the official clients, on either kind of database."""
import contextlib
import json
import re
import signal
import socket
import sqlite3
import subprocess
import time

import anthropic
import jwt
import openai
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from lib.postgres import Cluster
from lib.server import binary

ISSUER, AUDIENCE = "https://login.example.test/realms/company", "rempart"
ANNA = "anna@example.org"
# It is two seconds, and a little more on a busy machine; and so much more where it stops.
NOTICED_S, STOPPED_S = 4.0, 10.0
# Until it is given up.
GIVEN_UP_S = 60
# No part of a digest, which a copy has many of.
SUBJECT = "anna-at-the-login"
KINDS = {"RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
         "ES256": lambda: ec.generate_private_key(ec.SECP256R1()), "EdDSA": ed25519.Ed25519PrivateKey.generate}


def rempart(*arguments, fails=False):
    done = subprocess.run([binary(), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) == fails, done.stderr + done.stdout
    return done.stderr if fails else done.stdout


class Login:
    """Signs tokens, and publishes its public keys in a file."""

    def __init__(self, file):
        self.file = file
        self.keys = {algorithm: make() for algorithm, make in KINDS.items()}
        self.publish()

    def publish(self):
        own = []
        for algorithm, key in self.keys.items():
            jwk = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
            own.append(jwk | {"kid": algorithm, "use": "sig", "alg": algorithm})
        # As others have them, too: a key that encrypts.
        own.append(own[0] | {"kid": "enc", "use": "enc", "alg": "RSA-OAEP"})
        draft = self.file.with_suffix(".draft")
        draft.write_text(json.dumps({"keys": own}), encoding="utf-8")
        draft.replace(self.file)

    def token(self, algorithm="RS256", **claims):
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": ["account", AUDIENCE], "sub": SUBJECT, "iat": now, "exp": now + 600, "email": ANNA,
                  "email_verified": True} | claims
        return jwt.encode(claims, self.keys[algorithm], algorithm=algorithm, headers={"kid": algorithm})


class Company:
    """A server that takes the login's tokens, and what names its database for commands."""

    def __init__(self, server, database, login):
        self.server, self.database, self.login = server, database, login
        self.first = re.search(r"^sk-rempart-\S+$", server.log.read_text(), re.MULTILINE)[0]

    def run(self, *arguments, fails=False):
        return rempart(*arguments, *self.database, fails=fails)

    def client(self, token=None, **options):
        return openai.OpenAI(base_url=f"{self.server.root}/v1", api_key=token or self.login.token(), max_retries=0, timeout=60,
                             **options)


@pytest.fixture(params=["sqlite", "postgres"])
def company(request, own_server, tmp_path):
    login = Login(tmp_path / "keys.json")

    def start(place):
        database = ["--database", place, "--secret", str(tmp_path / "secret")]
        server = own_server("smollm2", f"oidc-{request.param}.log", [
            *database, "--served-model-name", "m", "--log-level", "trace", "--oidc-issuer", ISSUER, "--oidc-audience", AUDIENCE,
            "--oidc-keys", str(login.file)])
        company = Company(server, database, login)
        company.run("project", "create", "sales")
        company.run("user", "add", ANNA, "--name", "Anna Example")
        company.run("user", "join", ANNA, "--project", "sales")
        return company
    if request.param == "sqlite":
        yield start(str(tmp_path / "rempart.db"))
        return
    with Cluster() as cluster:
        yield start(cluster.url)


def chat(client):
    return client.chat.completions.create(model="m", max_tokens=4, messages=[{"role": "user", "content": "Hi"}])


def becomes(call, wanted):
    """How long it takes until a call ends with this error, or with none."""
    began = time.monotonic()
    while True:
        try:
            call()
            found = None
        except openai.APIStatusError as error:
            found = type(error)
        if found is wanted:
            return time.monotonic() - began
        assert time.monotonic() < began + GIVEN_UP_S, (found, wanted)
        time.sleep(0.05)


def in_time(noticed):
    """Of several changes one may have been noticed late, as the machine stopped."""
    assert sorted(noticed)[-2] < NOTICED_S and max(noticed) < NOTICED_S + STOPPED_S, noticed



def test_a_person_comes_and_goes_with_tokens(company):
    tokens = [company.login.token(algorithm) for algorithm in KINDS]
    becomes(lambda: chat(company.client(tokens[0])), None)
    for token in tokens:
        with company.client(token) as client:
            assert chat(client).usage.completion_tokens
    with anthropic.Anthropic(base_url=company.server.root, auth_token=tokens[0], max_retries=0) as client:
        assert client.messages.create(model="m", max_tokens=4, messages=[{"role": "user", "content": "Hi"}]).usage.output_tokens
    # All of that is one key's, which is hers and has no text.
    listed = [line for line in company.run("key", "list").splitlines() if " token " in line]
    assert len(listed) == 1 and "user_" in listed[0] and " sales " in listed[0]
    key = listed[0].split()[0]
    report = company.run("usage", "report", "--by", "project,key", "--format", "csv")
    assert re.search(rf"{key}.*\b5\b", report), report
    export = json.loads(company.run("gdpr", "export", ANNA))
    assert len(export["requests"]) == 5 and {row["key"] for row in export["requests"]} == {key}
    # Ended by an operator, made good again, and ended as she leaves.
    company.run("key", "revoke", key)
    with company.client() as client:
        noticed = [becomes(lambda: chat(client), openai.AuthenticationError)]
        company.run("key", "restore", key)
        noticed.append(becomes(lambda: chat(client), None))
        company.run("user", "role", ANNA, "admin")
        noticed.append(becomes(lambda: client.get("/../metrics", cast_to=str), None))
        company.run("user", "role", ANNA, "member")
        noticed.append(becomes(lambda: client.get("/../metrics", cast_to=str), openai.PermissionDeniedError))
        company.run("user", "remove", ANNA)
        noticed.append(becomes(lambda: chat(client), openai.AuthenticationError))
    in_time(noticed)
    assert "last: " in company.run("audit", "verify")
    log = company.server.log.read_text()
    for token in tokens:
        assert all(part not in log for part in token.split(".")[1:])
    assert ANNA not in log


def test_an_address_that_goes_to_somebody_else_takes_nothing_along(company):
    becomes(lambda: chat(company.client()), None)
    with company.client(company.login.token(sub="another")) as other, pytest.raises(openai.AuthenticationError) as refused:
        chat(other)
    assert refused.value.code == "invalid_api_key"
    with company.client(company.login.token(email="anna.new@example.org")) as renamed:
        chat(renamed)
    login = json.loads(company.run("gdpr", "export", ANNA))["person"]["login"]
    assert (login["issuer"], login["subject"]) == (ISSUER, SUBJECT) and login["bound"] > 0
    company.run("user", "unbind", ANNA)
    assert "no token has bound" in company.run("user", "unbind", ANNA, fails=True)
    with company.client(company.login.token(sub="another")) as other:
        noticed = [becomes(lambda: chat(other), None)]
    with company.client() as before:
        noticed.append(becomes(lambda: chat(before), openai.AuthenticationError))
    chain = company.run("audit", "tail")
    assert chain.count("user.bound") == 2 and chain.count("user.unbound") == 1
    # Somebody who comes back is nobody at the login, until they show a token.
    company.run("user", "remove", ANNA)
    company.run("user", "add", ANNA, "--name", "Anna Example")
    company.run("user", "join", ANNA, "--project", "sales")
    with company.client() as back:
        noticed.append(becomes(lambda: chat(back), None))
    in_time(noticed)
    copy = company.login.file.with_name("copy.jsonl")
    company.run("backup", str(copy))
    assert '"table":"subject"' in copy.read_text() and SUBJECT not in copy.read_text()
    company.run("gdpr", "erase", ANNA)
    assert "last: " in company.run("audit", "verify")


def test_projects_are_named_as_the_official_client_names_them(company):
    company.run("project", "create", "office")
    with company.client() as client, company.client(project="office") as office:
        becomes(lambda: chat(client), None)
        with pytest.raises(openai.AuthenticationError) as refused:
            chat(office)
        assert refused.value.code == "mismatched_project"
        company.run("user", "join", ANNA, "--project", "office")
        noticed = [becomes(lambda: chat(client), openai.BadRequestError)]
        with pytest.raises(openai.BadRequestError, match="OpenAI-Project"):
            chat(client)
        chat(office)
        report = company.run("usage", "report", "--by", "project", "--format", "csv")
        assert "office" in report and "sales" in report
        company.run("user", "leave", ANNA, "--project", "sales")
        noticed.append(becomes(lambda: chat(client), None))
        company.run("user", "leave", ANNA, "--project", "office")
        noticed.append(becomes(lambda: chat(client), openai.PermissionDeniedError))
    in_time(noticed)
    with company.client(company.first, project="sales") as other, pytest.raises(openai.AuthenticationError):
        other.models.list()


@pytest.mark.parametrize("company", ["sqlite"], indirect=True)
def test_what_another_has_signed_opens_nothing(company, tmp_path):
    becomes(lambda: chat(company.client()), None)
    mallory = Login(tmp_path / "other.json")
    # Everybody has the public key: it is no secret of an HMAC.
    public = json.loads(company.login.file.read_text())["keys"][0]["n"]
    bad = {
        "token_signature": mallory.token(),
        "token_expired": company.login.token(exp=int(time.time()) - 120),
        "token_early": company.login.token(nbf=int(time.time()) + 120),
        "token_issuer": company.login.token(iss=f"{ISSUER}2"),
        "token_audience": company.login.token(aud="account"),
        "token_address": company.login.token(email_verified=False),
        "token_subject": company.login.token(sub="another"),
        "token_person": company.login.token(email="bob@example.org", sub="bob"),
        "token_algorithm": jwt.encode({"email": ANNA}, public, algorithm="HS256", headers={"kid": "RS256"}),
        "token_malformed": jwt.encode({"email": ANNA}, None, algorithm="none"),
    }
    for reason, token in bad.items():
        with company.client(token) as client, pytest.raises(openai.AuthenticationError) as refused:
            client.models.list()
        assert refused.value.code == "invalid_api_key", reason
    with company.client(company.first) as owner:
        page = owner.get("/../metrics", cast_to=str)
    counted = {reason: int(count) for reason, count in re.findall(r'rempart_access_denied_total{reason="(\w+)"} (\d+)', page)}
    # She herself was nobody until the server had looked.
    assert counted.pop("token_person") >= 1
    # Every reason is there from the start, at 0.
    assert {reason: count for reason, count in counted.items() if count} == {reason: 1 for reason in bad if reason != "token_person"}
    # The login's keys change: by the file alone, or at once by a signal.
    old = company.login.token("ES256")
    company.login.keys["ES256"] = KINDS["ES256"]()
    company.login.publish()
    with company.client(company.login.token("ES256")) as client, company.client(old) as before:
        becomes(lambda: chat(client), None)
        assert becomes(lambda: chat(before), openai.AuthenticationError) < NOTICED_S + STOPPED_S
        company.login.file.write_text("{")
        company.server.process.send_signal(signal.SIGHUP)
        while "the keys before stay in use" not in company.server.log.read_text():
            time.sleep(0.05)
        chat(client)
    database = sqlite3.connect(company.database[1])
    assert all(token.split(".")[1] not in str(row) for token in bad.values() for row in database.execute("SELECT * FROM audit_event"))


def test_options_that_cannot_work_end_the_start(tmp_path):
    Login(tmp_path / "keys.json")
    rest = ["serve", "model", "--oidc-issuer", ISSUER, "--oidc-keys", tmp_path / "keys.json"]
    assert "go together" in rempart(*rest, fails=True)
    rest += ["--oidc-audience", AUDIENCE]
    assert "--oidc-issuer needs --database" in rempart(*rest, fails=True)
    (tmp_path / "keys.json").write_text('{"keys": []}')
    refused = rempart(*rest, "--database", tmp_path / "rempart.db", fails=True)
    assert f"--oidc-keys {tmp_path / 'keys.json'}: none of its keys" in refused


@contextlib.contextmanager
def slowly(server, token):
    """A chat whose body lacks its last byte; what is yielded sends that, and tells the status."""
    body = json.dumps({"model": "m", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    host, port = server.root.removeprefix("http://").split(":")
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n").encode()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head + body[:-1])

        def end():
            connection.sendall(body[-1:])
            return int(connection.makefile("rb").readline().split()[1])
        yield end


@pytest.mark.parametrize("company", ["sqlite"], indirect=True)
def test_what_ends_while_a_body_comes_in_ends_the_request(company):
    becomes(lambda: chat(company.client()), None)
    with slowly(company.server, company.login.token()) as end:
        assert end() == 200
    # The clock may differ by a minute: it ends two seconds from now.
    with slowly(company.server, company.login.token(exp=int(time.time()) - 58)) as end:
        time.sleep(4)
        assert end() == 401, "a token that has expired meanwhile"
    with slowly(company.server, company.login.token()) as end:
        company.run("user", "role", ANNA, "auditor")
        becomes(lambda: chat(company.client()), openai.PermissionDeniedError)
        assert end() == 403, "a role that may do less"
