"""What an admin finds once the package has been installed and has answered: for `scripts/newcomer`."""
import time

UNIT = "rempart.service"
CONFIGURATION = "/etc/rempart/rempart.toml"
MODELS = "/var/lib/rempart/models"
READY = "http://127.0.0.1:8080/readyz"
READY_S = 60
# Of who installs.
HOME = "/root"
# Where Debian's own tools, systemd and the shell of who installs write: what is there is not the package's.
OTHERS = (f"{HOME}/", "/var/lib/apt/", "/var/lib/dpkg/", "/var/lib/systemd/", "/var/cache/", "/var/log/", "/etc/machine-id", "/etc/.pwd.lock",
          "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-")
DATA = "/var/lib/rempart"


class CheckError(Exception):
    """Something is not as an admin is told."""


def journal(host):
    return host.run(["journalctl", "--unit", UNIT, "--no-pager", "--lines", "30"]).stdout


def shown(host, name):
    """A property of the unit."""
    return host.must(["systemctl", "show", UNIT, "--property", name, "--value"]).strip()


def files(host):
    """Every path of the root's own file system."""
    return set(host.must(["find", "/", "-xdev"]).splitlines())


def wait_ready(host):
    deadline = time.monotonic() + READY_S
    while host.run(["curl", "--silent", "--fail", READY]).returncode:
        if time.monotonic() > deadline:
            raise CheckError(f"not ready after {READY_S} s:\n{journal(host)}")
        time.sleep(0.1)


def runs_confined(host, _package):
    """the unit is sound, and runs as its user behind its walls"""
    # A small Debian has no `man`.
    if told := host.must(["systemd-analyze", "verify", "--man=no", UNIT, "rempart-traces.service"]).strip():
        raise CheckError(f"systemd-analyze verify: {told}")
    status = dict(line.split(":\t", 1) for line in host.must(["cat", f"/proc/{shown(host, 'MainPID')}/status"]).splitlines() if ":\t" in line)
    user = host.must(["id", "--user", "rempart"]).strip()
    found = {"user": set(status["Uid"].split()) == {user}, "no new rights": status["NoNewPrivs"] == "1",
             "no capability": int(status["CapBnd"], 16) == 0, "system calls filtered": status["Seccomp"] == "2"}
    if missing := [name for name, holds in found.items() if not holds]:
        raise CheckError(f"it lacks {', '.join(missing)}: {status}")
    mode = host.must(["stat", "--format", "%U %a", DATA]).strip()
    if mode != "rempart 700":
        raise CheckError(f"{DATA} is {mode}")


def says_what_it_lacks(host, _package):
    """without its model it says which one it wants, and serves when that has come"""
    host.must(["systemctl", "stop", UNIT])
    host.must(["mv", MODELS, f"{HOME}/models"])
    host.must(["systemctl", "start", UNIT])
    deadline = time.monotonic() + READY_S
    while "fetch it with `rempart pull smollm2-135m-instruct`" not in journal(host):
        if time.monotonic() > deadline:
            raise CheckError(f"it does not say what it lacks:\n{journal(host)}")
        time.sleep(0.2)
    host.must(["mv", f"{HOME}/models", MODELS])
    wait_ready(host)


def heeds_its_file(host, _package):
    """a wrong option is told and not tried again; a reload is heeded"""
    host.must(["cp", CONFIGURATION, f"{HOME}/kept.toml"])
    host.must(["sh", "-c", f"echo 'bnid = \"127.0.0.1:1\"' >> {CONFIGURATION}"])
    host.must(["systemctl", "reload", UNIT])
    wait_ready(host)
    host.run(["systemctl", "restart", UNIT])
    deadline = time.monotonic() + READY_S
    while shown(host, "ActiveState") != "failed":
        if time.monotonic() > deadline:
            raise CheckError(f"it goes on with an option that there is not:\n{journal(host)}")
        time.sleep(0.2)
    if "bnid is no option" not in journal(host):
        raise CheckError(f"it does not say which option is wrong:\n{journal(host)}")
    host.must(["cp", f"{HOME}/kept.toml", CONFIGURATION])
    host.must(["systemctl", "restart", UNIT])
    wait_ready(host)


def upgrades(host, package):
    """an upgrade keeps what was changed, and starts the server anew"""
    host.must(["sh", "-c", f"echo '# ours' >> {CONFIGURATION}"])
    before = shown(host, "MainPID")
    host.must(["apt-get", "install", "--reinstall", "--yes", f"./{package.name}"])
    if "# ours" not in host.must(["cat", CONFIGURATION]):
        raise CheckError(f"{CONFIGURATION} was replaced")
    wait_ready(host)
    if shown(host, "MainPID") == before:
        raise CheckError("the server of before still runs")


def comes_back(host, package):
    """what was removed and is installed again serves as before"""
    host.must(["apt-get", "remove", "--yes", "rempart"])
    if host.run(["systemctl", "is-active", UNIT]).stdout.strip() == "active":
        raise CheckError("the server still runs after its removal")
    host.must(["apt-get", "install", "--yes", f"./{package.name}"])
    wait_ready(host)


def purges(host, before):
    """A purge leaves the company's data and what owns them, and nothing else of the package."""
    told = host.must(["apt-get", "purge", "--yes", "rempart"])
    if "rm -r /var/lib/rempart" not in told:
        raise CheckError(f"a purge does not say that data stay: {told}")
    left = files(host) - before
    for path in (f"{DATA}/rempart.db", f"{DATA}/rempart.db.secret", MODELS):
        if path not in left:
            raise CheckError(f"a purge has deleted {path}")
    if more := sorted(path for path in left if not (path + "/").startswith((f"{DATA}/", *OTHERS)) and path not in OTHERS):
        raise CheckError(f"a purge leaves {', '.join(more)}")
    host.must(["getent", "passwd", "rempart"])
    if host.run(["systemctl", "is-active", UNIT]).stdout.strip() == "active":
        raise CheckError("the server still runs after a purge")


def goes_without_trace(host, package, before):
    """Where there are no data a purge leaves no user either."""
    host.must(["apt-get", "install", "--yes", f"./{package.name}"])
    host.must(["systemctl", "stop", UNIT])
    host.must(["rm", "-r", DATA])
    host.must(["apt-get", "purge", "--yes", "rempart"])
    if host.run(["getent", "passwd", "rempart"]).returncode == 0 or DATA in files(host) - before:
        raise CheckError("a purge without data leaves the user, or the folder")


def check(host, package, before):
    """All of it, in an order in which each finds what it needs. `before`: the files that there were before the package."""
    for one in (runs_confined, says_what_it_lacks, heeds_its_file, upgrades, comes_back):
        began = time.monotonic()
        one(host, package)
        print(f"ok {time.monotonic() - began:5.1f} s  {one.__doc__}", flush=True)
    purges(host, before)
    goes_without_trace(host, package, before)
    print("ok          a purge keeps the data and nothing else", flush=True)
