"""The CUDA kernels as machine code of every generation that is served, and what of a multiprocessor each of them takes.

A kernel that keeps registers in memory ("spills") is an error, and so is one that takes something else than is written down.
"""
import concurrent.futures
import dataclasses
import os
import re
import subprocess

GENERATIONS = (80, 86, 89, 90, 100, 120)
# What is written down, relative to the repository.
TABLE = "kernels/cuda/resources.txt"
HEADER = """\
# What a kernel takes, by the compiler of CUDA 13.0: registers of a thread / bytes of shared memory that the kernel itself
# declares / bytes of local memory of a thread, which are arrays that are indexed at run time (those of sines' large arguments).
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


def compile_for(generation, nvcc, repo, folder):
    """Compiles all kernels as kernels/build.rs does; returns what the assembler says of them."""
    flags = (repo / "kernels" / "cuda" / "nvcc.flags").read_text(encoding="utf-8").split()
    command = [nvcc, *flags, f"-gencode=arch=compute_{generation},code=[sm_{generation},compute_{generation}]",
               "-Xptxas", "-v", "-o", folder / f"sm_{generation}.fatbin", "cuda/all.cu"]
    done = subprocess.run(command, cwd=repo / "kernels", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"sm_{generation}:\n{done.stdout}")
    return done.stdout


def read(text):
    """Kernels' resources, and those of them that spill, in the assembler's report of one generation."""
    found, spilling = {}, []
    for entry in re.split(r"Compiling entry function '", text)[1:]:
        name = entry.split("'")[0]
        own = re.search(rf"Function properties for {name}\n +(\d+) bytes stack frame", entry)
        used = re.search(r"Used (\d+) registers(.*)", entry)
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
    folder.mkdir(parents=True, exist_ok=True)
    resources, spills = {}, 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        reports = list(pool.map(lambda generation: compile_for(generation, nvcc, repo, folder), GENERATIONS))
    for generation, report in zip(GENERATIONS, reports, strict=True):
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
