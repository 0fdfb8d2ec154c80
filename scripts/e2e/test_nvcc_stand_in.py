"""scripts/lib/nvcc_stand_in.py, called as cudaforge calls nvcc."""
import subprocess
import sys

import pytest
from lib import server

STAND_IN = server.REPO / "scripts" / "lib" / "nvcc_stand_in.py"
# Of cudaforge, in the folder of what it compiles.
LIST = ".cudaforge_cache.json"


@pytest.mark.parametrize(("arguments", "written"), [
    (["--ptx", "--output-directory", "{out}", "src/affine.cu"], "affine.ptx"),
    (["-c", "-o", "{out}/moe-1a.o", "src/moe.cu"], "moe-1a.o"),
    (["--lib", "-o", "{out}/libmoe.a", "{out}/moe-1a.o"], "libmoe.a"),
])
def test_an_empty_file_is_on_no_list_of_compiled_ones(tmp_path, arguments, written):
    """Where a run of it is ended, a real compiler must not take what it has written for its own."""
    (tmp_path / LIST).write_text("{}", encoding="utf-8")
    command = [sys.executable, STAND_IN, "-gencode=arch=compute_99,code=sm_99", *(part.format(out=tmp_path) for part in arguments)]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert (tmp_path / written).is_file()
    assert not (tmp_path / LIST).exists()
