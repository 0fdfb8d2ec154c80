"""What the step `faults` makes of tests that pass, fail, or do not end; the kernels are real, and a script is the tests."""
import dataclasses
import platform
import shutil
import sys

import pytest
from lib import faults, server, shim

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="fibers are written for x86-64")
TIMEOUT_S = 5


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scheduler")
    source = server.REPO / "kernels" / "cuda" / "shim" / "simt.cpp"
    return shim.compile_object(source, folder / "simt.o", ("-O1",))


def looked(folder, scheduler, end, **more):
    """What `look` says where the tests end so: Python, after the line with which tests begin."""
    program = folder / "tests"
    program.write_text(f"#!{sys.executable}\nimport sys, time\nprint('running 1 test', flush=True)\n{end}\n", encoding="utf-8")
    program.chmod(0o755)
    first = faults.read(server.REPO / "kernels" / "cuda" / "faults.toml")[0]
    fault = dataclasses.replace(first, kernels=first.kernels[:1], **more)
    bench = faults.Bench(server.REPO, folder, program, {("shim/simt.cpp", False): scheduler})
    return faults.look(bench, fault)


@pytest.mark.parametrize(("end", "hangs", "found", "word"), [
    ("sys.exit(101)", False, True, "found"),
    ("sys.exit(0)", False, False, "UNSEEN"),
    ("time.sleep(60)", False, False, "TIMEOUT"),
    ("time.sleep(60)", True, True, "found"),
    ("sys.exit(0)", True, False, "UNSEEN"),
])
def test_only_a_fault_that_hangs_is_found_by_waiting(tmp_path, scheduler, monkeypatch, end, hangs, found, word):
    monkeypatch.setattr(faults, "TIMEOUT_S", TIMEOUT_S)
    well, line = looked(tmp_path, scheduler, end, hangs=hangs)
    assert (well, line.split()[0]) == (found, word), line


def test_every_fault_can_be_planted(tmp_path):
    cuda = server.REPO / "kernels" / "cuda"
    for fault in faults.read(cuda / "faults.toml"):
        shutil.copy(cuda / fault.file, tmp_path / fault.file)
        faults.plant(fault, tmp_path)
        sources = {faults.place_of(kernel)[:2] for kernel in fault.kernels}
        assert len(sources) == 1, f"{fault.name}: its kernels are not of one source and kind"
