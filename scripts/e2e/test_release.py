"""The files of a release: the list of what is in the binary is a CycloneDX one and complete, and the sums are those of the files."""
import json
import subprocess
import sys
import tomllib

import conftest
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

REPO = conftest.server.REPO
OURS = "rempart"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    out = tmp_path_factory.mktemp("release") / "files"
    private = out.parent / "private.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", out.parent / "public.pem"], check=True)
    subprocess.run([sys.executable, REPO / "scripts" / "release", "--no-build", "--out", out, "--key", private], check=True)
    return out


def read(release):
    return json.loads((release / "rempart.cdx.json").read_text(encoding="utf-8"))


def test_the_list_follows_the_schema(release):
    text = (release / "rempart.cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None


def test_every_crate_of_the_binary_is_listed(release):
    """With what Cargo.lock says of it: version and checksum."""
    listed = read(release)
    assert listed["metadata"]["component"]["name"] == OURS
    parts = {(part["name"], part["version"]): part for part in listed["components"]}
    command = ["cargo", "tree", "--locked", "--offline", "--package", OURS, "--edges", "normal", "--prefix", "none"]
    lines = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.splitlines()
    crates = {tuple(line.replace(" v", " ", 1).split()[:2]) for line in lines if line}
    assert len(crates) > 300
    assert crates - parts.keys() == {(OURS, listed["metadata"]["component"]["version"])}
    assert not parts.keys() - crates
    lock = tomllib.loads((REPO / "Cargo.lock").read_text(encoding="utf-8"))
    sums = {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}
    for crate, part in parts.items():
        assert part["licenses"], crate
        hashes = [entry["content"] for entry in part.get("hashes", []) if entry["alg"] == "SHA-256"]
        assert hashes == [sums[crate]] if sums[crate] else crate[0].startswith(OURS), crate
    assert str(REPO) not in json.dumps(listed)


def test_sums_and_signature_are_of_the_files(release):
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=release, check=True)
    assert {file.name for file in release.iterdir()} == {"SHA256SUMS", "model.sig", "rempart", "rempart.cdx.json"}
    verify = [release / "rempart", "model", "verify", release, "--key", release.parent / "public.pem"]
    subprocess.run(verify, check=True)
    with (release / "SHA256SUMS").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert subprocess.run(verify, check=False).returncode == 1
