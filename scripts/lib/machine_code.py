"""The CUDA kernels as machine code of every generation that is served, and what of a multiprocessor each of them takes.

A kernel that keeps registers in memory ("spills") is an error, and so is one that takes something else than is written down.
What the assembler says of a generation is kept, and that generation is compiled again when anything that it was made of changes: what
`--write` writes down has been compiled by the check before it, and one that was ended goes on where it was.
"""
import concurrent.futures
import dataclasses
import os
import re
import subprocess
import time

from lib import stamps

GENERATIONS = (80, 86, 89, 90, 100, 120)
# What is written down, relative to the repository.
TABLE = "kernels/cuda/resources.txt"
FLAGS = "kernels/cuda/nvcc.flags"
# What the check depends on, beside the kernels' own files.
TOOLS = ("scripts/lib/machine_code.py", "scripts/lib/cuda_toolkit.py", "scripts/lib/cuda_requirements.txt")
HEADER = """\
# What a kernel takes, by the compiler of CUDA 13.0: registers of a thread / bytes of shared memory that the kernel itself
# declares / bytes of local memory of a thread: arrays that are indexed at run time (those of sines of large arguments).
# Shared memory that a launch asks for is kernels/src/cuda's to say.
"""


class CompileError(Exception):
    """The compiler's message."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """Of a kernel on a generation."""

    registers: int
    shared: int
    local: int

    def __str__(self):
        return f"{self.registers}/{self.shared}/{self.local}"


def sources(repo):
    """What is compiled, relative to the repository."""
    return [FLAGS, *sorted(str(file.relative_to(repo)) for file in (repo / "kernels" / "cuda").glob("*.cu*"))]


def compile_for(generation, nvcc, repo, folder, digest):
    """What the assembler says of all kernels, compiled as kernels/build.rs does, and whether it is kept from another time, when
    `digest` was the same."""
    options = [*(repo / FLAGS).read_text(encoding="utf-8").split(),
               f"-gencode=arch=compute_{generation},code=[sm_{generation},compute_{generation}]", "-Xptxas", "-v"]
    kept = stamps.Stamp(folder / f"sm_{generation}.digest", f"{digest} {' '.join(options)}")
    report = folder / f"sm_{generation}.txt"
    if kept.holds():
        return report.read_text(encoding="utf-8"), True
    kept.file.unlink(missing_ok=True)
    command = [nvcc, *options, "-o", folder / f"sm_{generation}.fatbin", "cuda/all.cu"]
    done = subprocess.run(command, cwd=repo / "kernels", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"sm_{generation}:\n{done.stdout}")
    report.write_text(done.stdout, encoding="utf-8")
    kept.set()
    return done.stdout, False


def reports(nvcc, repo, folder, say):
    """What the assembler says of each generation; as many compilers at a time as there are processors, the slowest ones first."""
    folder.mkdir(parents=True, exist_ok=True)
    compiler = subprocess.run([nvcc, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    digest = stamps.digest(repo, sources(repo), compiler)
    found, began = {}, time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        compiled = {pool.submit(compile_for, generation, nvcc, repo, folder, digest): generation
                    for generation in sorted(GENERATIONS, reverse=True)}
        try:
            for future in concurrent.futures.as_completed(compiled):
                generation = compiled[future]
                found[generation], kept = future.result()
                say(f"sm_{generation}: {'kept' if kept else f'compiled, {time.monotonic() - began:.0f} s'}")
        except CompileError:
            # The others would say the same.
            pool.shutdown(cancel_futures=True)
            raise
    return found


def read(text):
    """Kernels' resources, and those of them that spill, in the assembler's report of one generation."""
    found, spilling = {}, []
    for entry in re.split(r"Compiling entry function '", text)[1:]:
        name = entry.split("'")[0]
        own = re.search(rf"Function properties for {name}\n +(\d+) bytes stack frame", entry)
        used = re.search(r"Used (\d+) registers(.*)", entry)
        if not own or not used:
            raise CompileError(f"the assembler's report does not tell what {name} uses: {entry[:300]}")
        shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", used[2])
        found[name] = Resources(int(used[1]), int(shared[1]) if shared else 0, int(own[1]))
        # Of functions that it calls, too.
        if any(int(bytes_) for bytes_ in re.findall(r"(\d+) bytes spill", entry)):
            spilling.append(name)
    return found, spilling


def table(resources):
    """A line a kernel, a column a generation."""
    rows = [["kernel", *(f"sm_{generation}" for generation in GENERATIONS)]]
    for name in sorted(set().union(*resources.values())):
        rows.append([name, *(str(resources[generation].get(name, "none")) for generation in GENERATIONS)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return HEADER + "\n".join(lines) + "\n"


def differences(written, found):
    """What differs between two tables, a line each, however wide their columns are."""
    written, found = ({cells[0]: cells[1:] for line in text.splitlines() if (cells := line.split()) and cells[0] != "#"}
                      for text in (written, found))
    return [f"{name}: {' '.join(found.get(name, ['none']))}, written down {' '.join(written.get(name, ['none']))}"
            for name in sorted(written.keys() | found.keys()) if written.get(name) != found.get(name)]


def check(nvcc, repo, folder, write, say):
    """Compiles for all generations; says which kernels spill, and which take something else than is written down, or writes it
    down. Returns how many errors there are."""
    resources, spills = {}, 0
    for generation, report in sorted(reports(nvcc, repo, folder, say).items()):
        resources[generation], spilling = read(report)
        for name in spilling:
            say(f"error: {name} spills on sm_{generation}")
        spills += len(spilling)
    file = repo / TABLE
    changed = differences(file.read_text(encoding="utf-8") if file.is_file() else "", table(resources))
    for line in changed:
        say(line)
    compiled = f"{sum(map(len, resources.values()))} kernels of {len(GENERATIONS)} generations: {spills} spill"
    if write:
        file.write_text(table(resources), encoding="utf-8")
        say(f"{compiled}; {len(changed)} lines of {TABLE} are new")
        return spills
    say(f"{compiled}; {len(changed)} are not as in {TABLE}")
    return spills + len(changed)
