"""What writes the list of the crates in a binary, in an environment of its own."""
import pathlib

from lib import python_packages

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = REPO / ".cache" / "tools-release"


def python():
    """A Python that has the library; installed where it is not there."""
    # That of the tests, which have its validator, too.
    lines = (REPO / "scripts" / "e2e" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return python_packages.pinned(FOLDER, [line for line in lines if line.startswith("cyclonedx-python-lib==")])
