"""A machine of a documentation page's own: run inside `unshare --mount --net --pid --fork --mount-proc`.

    python scripts/e2e/own_machine.py FOLDER [SOURCE TARGET] ...

FOLDER is empty, in memory, and this machine's alone; each SOURCE, a file, is read at TARGET, and can't be written to. There is no network
but loopback, so that a page's ports are free and nothing is fetched; no process that is somebody else's; and an /etc, /mnt and
/usr/local/share of its own, so that commands may write where the page says. Ends with its standard input, and what was started in it ends
then, too.
"""
import pathlib
import shutil
import subprocess
import sys

from alone import raise_loopback

# Names that pages have for a machine, and users that packages bring.
HOSTS = "127.0.0.1 localhost llm.example\n"
USER = "prometheus:x:998:998::/nonexistent:/usr/sbin/nologin\n"
GROUP = "prometheus:x:998:\n"


def furnish(folder):
    """The folder, and what is mounted at /etc, /mnt and /usr/local/share."""
    subprocess.run(["mount", "-t", "tmpfs", "own", folder], check=True)
    etc, mnt, share = folder / "etc", folder / "mnt", folder / "share"
    shutil.copytree("/etc", etc, symlinks=True)
    (etc / "hosts").write_text(HOSTS)
    for name, line in (("passwd", USER), ("group", GROUP)):
        with (etc / name).open("a") as file:
            file.write(line)
    for new in (folder / "home", etc / "prometheus", etc / "bash_completion.d", mnt / "worm", mnt / "backup", share / "man" / "man1"):
        new.mkdir(parents=True, exist_ok=True)
    for source, target in ((etc, "/etc"), (mnt, "/mnt"), (share, "/usr/local/share")):
        subprocess.run(["mount", "--bind", source, target], check=True)
    # The rest is the host's, which no command of a page writes to; what tests share is in /tmp.
    subprocess.run(["mount", "--rbind", "/tmp", "/tmp"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", "/"], check=True)


def show(sources, targets):
    """Files that are large, or not ours to write to, in the places where a page looks for them."""
    for source, target in zip(sources, targets, strict=True):
        place = pathlib.Path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        subprocess.run(["mount", "-o", "bind,ro", source, target], check=True)


def main():
    raise_loopback()
    folder, *files = sys.argv[1:]
    furnish(pathlib.Path(folder))
    show(files[::2], files[1::2])
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
