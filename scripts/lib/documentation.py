"""The pages of the documentation, cut into blocks and commands."""
import dataclasses
import re
import shlex

from lib import server

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    line: int
    language: str
    text: str

    def commands(self):
        """A shell block's commands, each with all of its lines; lines that are a comment alone are left out. Any other block is one."""
        return split(self.text) if self.language == "sh" else [self.text]

    def __str__(self):
        return f"{self.page}:{self.line}"


def split(text):
    """A command goes on while a quote is open or a line ends in a backslash."""
    commands, lines = [], []
    for line in text.splitlines():
        lines.append(line)
        joined = "\n".join(lines)
        try:
            words = shlex.split(joined, comments=True)
        except ValueError:
            continue
        if line.endswith("\\"):
            continue
        if words:
            commands.append(joined)
        lines = []
    if any(line.strip() for line in lines):
        raise ValueError(f"a command without an end: {lines}")
    return commands


def names():
    """The pages whose blocks are executed, as paths in the repository."""
    return ["README.md", *sorted(f"docs/{path.name}" for path in (server.REPO / "docs").glob("*.md"))]


def blocks(page):
    text = (server.REPO / page).read_text(encoding="utf-8")
    found = [Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in FENCE.finditer(text)]
    if 2 * len(found) != len(re.findall(r"^\s*```", text, re.MULTILINE)):
        raise ValueError(f"{page}: a fence that is indented or has no end")
    return found


def command(page, beginning):
    """The page's only command in a shell that begins so, as it stands there."""
    found = [one for block in blocks(page) if block.language == "sh" for one in block.commands() if one.startswith(beginning)]
    if len(found) != 1:
        raise ValueError(f"{page}: {len(found)} commands begin with {beginning!r}, not one")
    return found[0]
