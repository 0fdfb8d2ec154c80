"""Signed models: what Rempart signs, the reference implementation of OpenSSF model signing verifies, and the other way round; a server
that asks for signatures loads nothing else."""
import datetime
import json
import re
import shutil
import subprocess

import conftest
import model_signing
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

models, server = conftest.models, conftest.server

CURVES = (ec.SECP256R1(), ec.SECP384R1())
FILES = {"config.json": b"{}", "a/b": b"y", "a.b": b"x", "model.safetensors": bytes(range(256)) * 5000, "empty.txt": b""}


def rempart(*arguments, status=0):
    """Output and errors of a command that ends with this status."""
    done = subprocess.run([server.binary(), "model", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_key(folder, key, form=serialization.PrivateFormat.PKCS8):
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def reference_verifies(model, signature, public):
    model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public).verify(model, signature)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_the_reference_verifies_what_we_sign(folder, tmp_path, curve, form):
    private, public = write_key(tmp_path, ec.generate_private_key(curve), form)
    rempart("sign", folder, "--key", private)
    reference_verifies(folder, folder / "model.sig", public)
    rempart("verify", folder, "--key", public)
    # A manifest is no part of what is signed.
    (folder / "rempart-manifest.json").write_text("{}", encoding="utf-8")
    reference_verifies(folder, folder / "model.sig", public)
    rempart("verify", folder, "--key", public)
    (folder / "a.b").write_bytes(b"z")
    with pytest.raises(ValueError, match="mismatch"):
        reference_verifies(folder, folder / "model.sig", public)
    assert "differs   `a.b`" in rempart("verify", folder, "--key", public, status=1)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
@pytest.mark.parametrize("shard_bytes", [None, 1_000_000])
def test_we_verify_what_the_reference_signs(folder, tmp_path, curve, shard_bytes):
    private, public = write_key(tmp_path, ec.generate_private_key(curve))
    hashing = model_signing.hashing.Config()
    if shard_bytes:
        # Without a byte there is no shard.
        (folder / "empty.txt").unlink()
        hashing.use_shard_serialization(shard_size=shard_bytes)
    signature = folder / "model.sig"
    model_signing.signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(hashing).sign(folder, signature)
    told = rempart("verify", folder, "--key", public)
    statement = json.loads(signature.read_text(encoding="utf-8"))
    assert statement["verificationMaterial"]["publicKey"]["hint"] in told
    (folder / "chat_template.jinja").write_text("", encoding="utf-8")
    assert "unknown   `chat_template.jinja`" in rempart("verify", folder, "--key", public, status=1)
    (folder / "chat_template.jinja").unlink()
    (folder / "config.json").unlink()
    assert "missing   `config.json`" in rempart("verify", folder, "--key", public, status=1)


def test_a_single_file_goes_both_ways(tmp_path):
    private, public = write_key(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" * 1000)
    signature = tmp_path / "model.gguf.sig"
    rempart("sign", file, "--key", private)
    reference_verifies(file, signature, public)
    signature.unlink()
    model_signing.signing.Config().use_elliptic_key_signer(private_key=private).sign(file, signature)
    rempart("verify", file, "--key", public)
    file.write_bytes(b"GGUF" * 999)
    rempart("verify", file, "--key", public, status=1)


def test_ed25519_is_ours_alone(folder, tmp_path):
    private, public = write_key(tmp_path, ed25519.Ed25519PrivateKey.generate())
    assert "Rempart alone" in rempart("sign", folder, "--key", private)
    rempart("verify", folder, "--key", public)
    # It does not even ask what kind of key it is.
    with pytest.raises(AttributeError):
        reference_verifies(folder, folder / "model.sig", public)


def certificate(subject, key, issuer, issuer_key, authority):
    now = datetime.datetime.now(datetime.UTC)
    name = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (subject, issuer)]
    others = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
                            "decipher_only"), False)
    builder = (x509.CertificateBuilder().subject_name(name[0]).issuer_name(name[1]).public_key(key.public_key())
               .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
               .add_extension(x509.BasicConstraints(authority, None), critical=True)
               .add_extension(x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **others),
                              critical=True))
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_certificates_go_both_ways(folder, tmp_path):
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root, own = tmp_path / "root.pem", tmp_path / "own.pem"
    root.write_bytes(certificate("company", root_key, "company", root_key, True))
    own.write_bytes(certificate("signer", key, "company", root_key, False))
    private, public = write_key(tmp_path, key)
    signature = folder / "model.sig"
    verifying = model_signing.verifying.Config().use_certificate_verifier(certificate_chain=[root])
    rempart("sign", folder, "--key", private, "--certificate", own)
    verifying.verify(folder, signature)
    signature.unlink()
    signing = model_signing.signing.Config()
    signing.use_certificate_signer(private_key=private, signing_certificate=own, certificate_chain=[root]).sign(folder, signature)
    assert "CN=signer" in rempart("verify", folder, "--certificate-chain", root)
    assert "only keys are" in rempart("verify", folder, "--key", public, status=1)


def test_of_a_chain_only_authorities_vouch_for_others(folder, tmp_path):
    root_key, key, forged_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    root = certificate("company", root_key, "company", root_key, True)
    own = certificate("web", key, "company", root_key, False)
    forged, chain, alone = tmp_path / "forged.pem", tmp_path / "chain.pem", tmp_path / "alone.pem"
    # Whoever has the key of a certificate that is in the file makes another with it.
    forged.write_bytes(certificate("release", forged_key, "web", key, False))
    chain.write_bytes(own + root)
    alone.write_bytes(own)
    private, _ = write_key(tmp_path, forged_key)
    rempart("sign", folder, "--key", private, "--certificate", forged, "--certificate-chain", alone)
    assert "vouches" in rempart("verify", folder, "--certificate-chain", chain, status=1)
    assert "no certificate of an authority" in rempart("verify", folder, "--certificate-chain", alone, status=1)


def test_what_is_added_to_a_folder_does_not_stand_for_it(folder, tmp_path):
    private, public = write_key(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    (folder / "config.json").unlink()
    rempart("sign", folder, "--key", private)
    rempart("verify", folder, "--key", public)
    signed = folder / "other.gguf"
    signed.write_bytes(b"GGUF" * 1000)
    rempart("sign", signed, "--key", private)
    (folder / "a.b").write_bytes(b"z")
    told = rempart("verify", folder, "--key", public, status=1)
    assert "unknown   `other.gguf`" in told and "differs   `a.b`" in told


def test_a_signature_takes_no_other_file_s_place(folder, tmp_path):
    private, _ = write_key(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    key = private.read_bytes()
    for place in (private, folder / "config.json", tmp_path):
        rempart("sign", folder, "--key", private, "-o", place, status=1)
    assert private.read_bytes() == key and (folder / "config.json").read_bytes() == FILES["config.json"]
    # Its own it does.
    for _ in range(2):
        rempart("sign", folder, "--key", private)


def test_what_is_in_the_store_is_listed(folder, tmp_path):
    private, public = write_key(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    store = ["--models-dir", folder.parent]
    assert re.search(r"^model +- +5 files .* nothing$", rempart("list", *store), re.MULTILINE)
    assert "nothing proves" in rempart("verify", folder, status=1)
    rempart("sign", folder, "--key", private)
    assert re.search(r"^model +- +5 files .* signature$", rempart("list", *store), re.MULTILINE)
    assert "is checked with --key" in rempart("verify", folder, status=1)
    rempart("verify", folder, "--key", public)


def test_only_signed_models_are_served(tmp_path, current):
    current.close()
    private, public = write_key(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    model = tmp_path / "signed.gguf"
    shutil.copy(models.fetch("smollm2", models.default_directory()), model)

    database = ["--database", str(tmp_path / "rempart.db")]

    def refused(reason):
        with server.Server(model, conftest.LOGS / "unsigned.log", arguments=["--model-key", public, *database]) as running:
            assert running.process.wait(timeout=60) == 1
            chain = subprocess.run([server.binary(), "audit", "tail", "--action", "model.refused", *database], capture_output=True,
                                   text=True, timeout=60, check=True).stdout.splitlines()
            # In a word: where it lay and what is wrong in it is in the log.
            assert f'{{"reason":"{reason}"}}' in chain[-1] and "signature" not in chain[-1]
            return running.log.read_text(encoding="utf-8")
    assert "has no signature" in refused("unsigned")
    told = rempart("sign", model, "--key", private)
    sha256 = re.search("SHA-256 ([0-9a-f]{64})", told)[1]
    with server.Server(model, conftest.LOGS / "signed.log", arguments=["--model-key", public]) as running:
        running.wait_ready(conftest.READY_S)
        with conftest.make_client(running) as client:
            assert client.models.retrieve("signed").sha256 == sha256
        assert sha256 in running.log.read_text(encoding="utf-8")
    with model.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert "is not what was signed" in refused("differs")
    other = tmp_path / "other"
    other.mkdir()
    _, public = write_key(other, ec.generate_private_key(ec.SECP256R1()))
    assert "another key" in refused("untrusted")
