"""Virtual environments with exactly the packages of a list."""
import subprocess
import venv


class PackagesError(Exception):
    """An environment can't be made, and what to do about it."""


def pinned(folder, requirements):
    """An environment with exactly these packages; made again when the list has changed. Returns its Python."""
    python, stamp = folder / "bin" / "python", folder / ".requirements"
    wanted = "\n".join(requirements)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing into {folder}: {' '.join(requirements)}", flush=True)
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PackagesError(f"no virtual environment ({error}): Debian and Ubuntu have it in python3-venv") from error
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", *requirements]
    if subprocess.run(command, check=False).returncode != 0:
        raise PackagesError(f"pip could not install into {folder}")
    stamp.write_text(wanted, encoding="utf-8")
    return python
