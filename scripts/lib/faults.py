"""Faults planted in the CUDA kernels, one at a time: the kernels' tests must find every one.

kernels/cuda/faults.toml says what is replaced by what, and which kernels' tests must notice. A fault is compiled alone, with the
few kernels that it is about, and the tests that are built already run on that. Tests that do not end have noticed nothing: a slow
machine does that to them, too. A fault that makes them wait for ever says so (`hangs = true`).
"""
import concurrent.futures
import dataclasses
import enum
import os
import re
import shutil
import time
import tomllib

from lib import shim

# Tests of kernels without a fault, which pass with all of their cases elsewhere.
SOUND_CASES = 25
# For the tests of each kernel: a fault may keep one waiting for ever.
TIMEOUT_S = 120
# The status of `timeout` when it has ended something.
TIMED_OUT = 124


@dataclasses.dataclass(frozen=True)
class Fault:
    """`before` becomes `after` in a file of kernels/cuda; the tests of `kernels` must fail. `address`: what shows is an access
    outside memory, so AddressSanitizer must be looking. `hangs`: what shows is that they don't end."""

    name: str
    file: str
    before: str
    after: str
    why: str
    kernels: tuple[str, ...]
    address: bool = False
    hangs: bool = False


class Outcome(enum.Enum):
    """What tests came to."""

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed out"


class FaultError(Exception):
    """A fault that cannot be planted."""


def read(file):
    faults = [Fault(**{**table, "kernels": tuple(table["kernels"])}) for table in tomllib.loads(file.read_text(encoding="utf-8"))["fault"]]
    names = [fault.name for fault in faults]
    if len(set(names)) != len(names):
        raise FaultError("two faults have one name")
    return faults


def plant(fault, cuda):
    """Puts a fault into a copy of the kernels."""
    path = cuda / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.before) != 1:
        raise FaultError(f"{fault.name}: its text is {text.count(fault.before)} times in {fault.file}, and must be there once")
    path.write_text(text.replace(fault.before, fault.after), encoding="utf-8")


def place_of(kernel):
    """A kernel's source, what restricts compiling to its like, and the full name of its test."""
    if found := re.fullmatch(r"(product_\w+_\d|embed)_(Q\w+)", kernel):
        return "product", f"-DFORMATS(X)=X({found[2]})", f"cuda::tests::packed::{found[1]}::host::{found[2]}"
    if found := re.fullmatch(r"(?:product_\w+|embed)_(Bf16|F16)", kernel):
        return "dense", f"-DDENSE_FORMATS(X)=X({found[1]})", f"cuda::tests::dense::host::{kernel}"
    if found := re.fullmatch(r"attend_\w+_(\d+)", kernel):
        return "attention", f"-DWIDTHS_OF_HEADS(X)=X({found[1]})", f"cuda::tests::attention::host::{kernel}"
    if found := {"round_rows": "round", "round_rows_16": "round", "sample": "sample"}.get(kernel):
        return found, "", f"cuda::tests::{found}::host::{kernel}"
    tests = "rope" if kernel.startswith("rope") else "block"
    return "block", "", f"cuda::tests::{tests}::host::{kernel}"


@dataclasses.dataclass
class Bench:
    """What all faults share: the repository, a folder to work in, the tests' program, and what need not be compiled twice."""

    repo: object
    folder: object
    program: object
    common: dict

    def prepare(self):
        """The scheduler, and the rounding that products need before them; with a sanitizer and without."""
        cuda = self.repo / "kernels" / "cuda"
        for address in (False, True):
            flags = shim.SANITIZERS if address else ("-O1",)
            for name in ("shim/simt.cpp", "round.cu"):
                out = self.folder / f"{name.split('/')[-1]}-{address}.o"
                self.common[name, address] = shim.compile_object(cuda / name, out, flags)

    def run(self, kernels, address, fault=None, cases=None):
        """The tests of some kernels of one source. Returns (outcome, whether as many ran as there are, what they said)."""
        name = fault.name if fault else f"sound-{kernels[0]}-{address}"
        work = self.folder / name
        shutil.rmtree(work, ignore_errors=True)
        cuda = work / "cuda"
        shutil.copytree(self.repo / "kernels" / "cuda", cuda)
        if fault:
            plant(fault, cuda)
        (source, only, _), *_ = places = [place_of(kernel) for kernel in kernels]
        if {place[:2] for place in places} != {(source, only)}:
            raise FaultError(f"{name}: its kernels are not of one source and kind")
        flags = (*(shim.SANITIZERS if address else ("-O1",)), *([only] if only else []))
        objects = [shim.compile_object(cuda / f"{source}.cu", work / "kernels.o", flags), self.common["shim/simt.cpp", address]]
        if source in ("product", "dense"):
            objects.append(self.common["round.cu", address])
        library = shim.link(objects, work / "kernels.so", flags)
        environment = os.environ | shim.settings(library, address)
        if cases:
            environment["REMPART_KERNEL_CASES"] = str(cases)
        command = ["timeout", str(TIMEOUT_S * len(kernels)), self.program, "--exact", "--test-threads=1", *(place[2] for place in places)]
        done = shim.call(command, env=environment)
        began = re.search(r"^running (\d+) tests?$", done.stdout, re.MULTILINE)
        shutil.rmtree(work)
        outcome = {0: Outcome.PASSED, TIMED_OUT: Outcome.TIMED_OUT}.get(done.returncode, Outcome.FAILED)
        return outcome, bool(began) and int(began[1]) == len(kernels), done.stdout


def reason(text):
    """Why a test failed, in one line."""
    found = re.search(r"^(simt: .*|.*ERROR: AddressSanitizer: \S+|.*runtime error: .*)$", text, re.MULTILINE)
    if not found:
        found = re.search(r"panicked at [^\n]*\n([^\n]*)", text)
    return (found[1] if found else "ended")[:110]


def look(bench, fault):
    """Plants a fault; returns whether it was found, and a line that says how."""
    began = time.monotonic()
    outcome, complete, text = bench.run(fault.kernels, fault.address, fault)
    seconds = time.monotonic() - began
    if not complete:
        return False, f"FAILED   {fault.name}: its tests did not run: {text[-300:]}"
    if outcome is Outcome.PASSED:
        return False, f"UNSEEN   {fault.name}: {fault.why}"
    if outcome is Outcome.TIMED_OUT and not fault.hangs:
        return False, f"TIMEOUT  {fault.name} ({seconds:.0f} s): its tests did not end, and it is not one that hangs"
    how = "they do not end" if outcome is Outcome.TIMED_OUT else reason(text)
    return True, f"found    {fault.name} ({seconds:.0f} s): {how}"


def check(repo, folder, program, say):
    """Every fault, after the same tests without any. Returns (faults found, not found)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    faults = read(repo / "kernels" / "cuda" / "faults.toml")
    bench = Bench(repo, folder, program, {})
    bench.prepare()
    groups = {}
    for fault in faults:
        for kernel in fault.kernels:
            groups.setdefault((place_of(kernel)[:2], fault.address), set()).add(kernel)
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        sound = [(sorted(kernels), pool.submit(bench.run, tuple(sorted(kernels)), address, None, SOUND_CASES))
                 for (_, address), kernels in groups.items()]
        looks = [pool.submit(look, bench, fault) for fault in faults]
        for kernels, future in sound:
            outcome, complete, text = future.result()
            if outcome is not Outcome.PASSED or not complete:
                pool.shutdown(cancel_futures=True)
                raise FaultError(f"tests of {', '.join(kernels)}, without a fault: {outcome.value}\n{text}")
        found = 0
        for future in looks:
            well, line = future.result()
            say(line)
            found += well
    return found, len(faults) - found
