"""What a Debian package holds, and whether that is as it should be: the essentials of Debian's policy that can be looked up in a
second, and our own promises. For `scripts/package`."""
import io
import re
import subprocess
import tarfile

UNIT = "/usr/lib/systemd/system/rempart.service"
CONFIGURATION = "/etc/rempart/rempart.toml"
# What must be there, and with which mode.
WANTED = {
    "/usr/bin/rempart": 0o755,
    UNIT: 0o644,
    "/usr/lib/sysusers.d/rempart.conf": 0o644,
    CONFIGURATION: 0o644,
    "/usr/share/man/man1/rempart.1.gz": 0o644,
    "/usr/share/man/man1/rempart-serve.1.gz": 0o644,
    "/usr/share/bash-completion/completions/rempart": 0o644,
    "/usr/share/doc/rempart/copyright": 0o644,
    "/usr/share/doc/rempart/changelog.gz": 0o644,
    "/usr/share/doc/rempart/install.md": 0o644,
}
FIELDS = ("Package", "Version", "Architecture", "Maintainer", "Description", "Section", "Priority", "Installed-Size", "Depends")
# Nothing of a package is anywhere else.
PLACES = ("/etc/rempart/", "/usr/bin/", "/usr/lib/systemd/system/", "/usr/lib/sysusers.d/", "/usr/share/")
SCRIPTS = ("postinst", "prerm", "postrm")
BYTES_MAX = 40_000_000


class DebError(Exception):
    """It is no Debian package, or dpkg is missing."""


def dpkg(*arguments):
    done = subprocess.run(["dpkg-deb", *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        raise DebError(f"dpkg-deb {' '.join(map(str, arguments))}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def fields(file):
    """The control fields, those of several lines whole."""
    text = dpkg("--field", file).decode()
    return dict(re.findall(r"^([\w-]+): ((?:.*)(?:\n .*)*)$", text, re.MULTILINE))


def tree(file):
    """What it installs: (member, content, None for what is no file), by absolute path."""
    return _members(dpkg("--fsys-tarfile", file))


def control(file):
    """Its control files, such as conffiles and maintainer scripts."""
    return _members(dpkg("--ctrl-tarfile", file))


def _members(archive):
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            path = "/" + member.name.removeprefix("./").strip("/")
            found[path] = (member, members.extractfile(member).read() if member.isfile() else None)
    return found


def faults(file):
    """What is not as it should be, one line each."""
    installed, scripts, named = tree(file), control(file), fields(file)
    return [*_of_fields(named), *_of_files(installed), *_of_scripts(scripts), *_of_unit(installed),
            *([] if file.stat().st_size <= BYTES_MAX else [f"has more than {BYTES_MAX} bytes"])]


def _of_fields(named):
    yield from (f"has no field {name}" for name in FIELDS if not named.get(name))
    if named.get("Package") != "rempart" or not re.fullmatch(r"\d+\.\d+\.\d+[\w.+~-]*", named.get("Version", "")):
        yield f"is called {named.get('Package')} {named.get('Version')}"
    synopsis = named.get("Description", "").splitlines()[:1]
    if not synopsis or len(synopsis[0]) > 80 or synopsis[0].endswith("."):
        yield f"has a synopsis that is no line of up to 80 letters: {synopsis}"
    if "libc6 (>=" not in named.get("Depends", ""):
        yield "does not say which libc6 it needs"


def _of_files(installed):
    for path, mode in WANTED.items():
        if path not in installed:
            yield f"lacks {path}"
        elif installed[path][0].mode != mode:
            yield f"has {path} with mode {installed[path][0].mode:o}, not {mode:o}"
    for path, (member, content) in installed.items():
        if (member.uid, member.gid) != (0, 0):
            yield f"has {path}, which is not root's"
        if member.mode & 0o7022:
            yield f"has {path}, which others may write or which is setuid: {member.mode:o}"
        if not member.isdir() and not path.startswith(PLACES):
            yield f"has {path}, where nothing of ours belongs"
        if path.startswith("/usr/share/man/") and member.isfile() and not path.endswith(".gz"):
            yield f"has {path}, which is not compressed"
    binary = installed.get("/usr/bin/rempart", (None, b""))[1]
    if not binary.startswith(b"\x7fELF") or b".debug_info\0" in binary or b".symtab\0" in binary:
        yield "has a binary that is none, or that is not stripped"


def _of_scripts(scripts):
    listed = scripts.get("/conffiles", (None, b""))[1].decode().split()
    if listed != [CONFIGURATION]:
        yield f"has {listed} as files that are asked about before they are replaced"
    for name in SCRIPTS:
        member, content = scripts.get(f"/{name}", (None, b""))
        if member is None:
            yield f"lacks {name}"
            continue
        if member.mode != 0o755 or not content.startswith(b"#!/bin/sh\nset -e\n"):
            yield f"has a {name} that is no script that ends at the first error"
        if subprocess.run(["sh", "-n"], input=content, capture_output=True, check=False).returncode:
            yield f"has a {name} that no shell can read"


def _of_unit(installed):
    """Names in the unit that nothing installs would only be found out when it starts."""
    unit = installed.get(UNIT, (None, b""))[1].decode()
    started = re.search(r"^ExecStart=(\S+)", unit, re.MULTILINE)
    if not started or started[1] not in installed:
        yield "has a unit that starts what is not in it"
    if f"--config {CONFIGURATION}" not in unit:
        yield f"has a unit that does not read {CONFIGURATION}"
    user = re.search(r"^User=(\S+)", unit, re.MULTILINE)
    users = installed.get("/usr/lib/sysusers.d/rempart.conf", (None, b""))[1].decode()
    if not user or not re.search(rf"^u {user[1]} ", users, re.MULTILINE):
        yield "has a unit whose user it does not make"
