"""Whether documentation of Rust code has examples, which `cargo test --doc` would run: without any it still reads every crate anew."""
import re

# What opens a block of code in a comment of documentation; with a word that is none of Rust's it is not compiled.
FENCE = re.compile(r"^\s*(?://[/!]|\*)? ?\s*```(.*)$")
RUN = {"", "rust", "should_panic", "no_run", "compile_fail"}


def in_text(text):
    """Whether a file has a block that is compiled."""
    inside = False
    for line in text.splitlines():
        found = FENCE.match(line)
        if found and not inside and found[1].strip().split(",")[0] in RUN:
            return True
        inside ^= bool(found)
    return False


def any_in(repo):
    """Whether some crate of the workspace has one."""
    folders = ("server", "kernels", "models", "benches", "scripts/xtask")
    return any(in_text(path.read_text(encoding="utf-8")) for folder in folders for path in (repo / folder).rglob("*.rs"))
