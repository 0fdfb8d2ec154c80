"""Steps that are left out where nothing that they depend on has changed since they passed."""
import hashlib


def digest(repo, places, *more):
    """One number for the files at `places`, relative to the repository, folders with all in them; and for what else counts."""
    total = hashlib.sha256()
    for place in places:
        path = repo / place
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            total.update(f"{file.relative_to(repo)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    for text in more:
        total.update(f"{text}\n".encode())
    return total.hexdigest()


class Stamp:
    """A file that holds the digest with which a step passed."""

    def __init__(self, file, wanted):
        self.file, self.wanted = file, wanted

    def holds(self):
        return self.file.is_file() and self.file.read_text(encoding="utf-8") == self.wanted

    def set(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(self.wanted, encoding="utf-8")
