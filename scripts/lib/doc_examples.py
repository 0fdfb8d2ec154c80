"""Whether documentation of Rust code has examples, which `cargo test --doc` would run: without any it still reads every crate anew."""
import re

# What opens a block of code in a comment of documentation, and what makes one of a page.
FENCE = re.compile(r"^\s*(?://[/!]|\*)? ?\s*(?:```|~~~)(.*)$")
PAGE = re.compile(r"#!?\[doc *= *include_str!")
# With such a word it is not compiled; any other may be one that is.
NOT_RUN = {"text", "json", "sh", "toml", "console", "ignore"}


def in_text(text):
    """Whether a file may have a block that is compiled."""
    if PAGE.search(text):
        return True
    inside = False
    for line in text.splitlines():
        found = FENCE.match(line)
        if found and not inside and found[1].strip() not in NOT_RUN:
            return True
        inside ^= bool(found)
    return False


def any_in(repo):
    """Whether some crate of the workspace has one."""
    folders = ("server", "kernels", "models", "benches", "scripts/xtask")
    return any(in_text(path.read_text(encoding="utf-8")) for folder in folders for path in (repo / folder).rglob("*.rs"))
