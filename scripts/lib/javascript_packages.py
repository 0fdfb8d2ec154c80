"""The packages for JavaScript, exactly as a lock file has them; nothing of theirs is run."""
import shutil
import subprocess


class PackagesError(Exception):
    """They could not be installed."""


def install(folder, source, wheel):
    """Installs what the lists in `source` name into `folder`, by the node and npm of the wheel, unless it is there."""
    lists = [source / "package.json", source / "package-lock.json"]
    stamp = folder / ".installed"
    wanted = "\n".join(file.read_text(encoding="utf-8") for file in lists)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"installing the packages of {lists[1]}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    for file in lists:
        shutil.copy(file, folder)
    command = [wheel / "bin" / "node", wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js", "ci",
               "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel", "error"]
    if subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, check=False).returncode != 0:
        raise PackagesError(f"npm could not install into {folder}")
    stamp.write_text(wanted, encoding="utf-8")
