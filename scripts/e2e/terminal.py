"""A terminal of a program's own."""
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from fcntl import ioctl

SIZE = struct.pack("HHHH", 30, 120, 0, 0)


class Terminal:
    """A program with a terminal: what it writes is collected, what is typed is sent."""

    def __init__(self, command, environment):
        self.leader, follower = pty.openpty()
        ioctl(follower, termios.TIOCSWINSZ, SIZE)
        self.before = termios.tcgetattr(follower)
        self.follower = follower
        self.text = ""
        self.process = subprocess.Popen(
            command, stdin=follower, stdout=follower, stderr=follower, env={**environment, "TERM": "xterm-256color"},
            start_new_session=True, preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )

    def type(self, text):
        os.write(self.leader, text.encode())

    def wait_for(self, pattern, seconds=30):
        """Waits for a pattern behind what was waited for before, and gives its match."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = re.search(pattern, self.text)
            if found:
                self.text = self.text[found.end():]
                return found
            if select.select([self.leader], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.leader, 65536).decode(errors="replace")
                except OSError:
                    break
        raise AssertionError(f"{pattern!r} not in {self.text[-2000:]!r}")

    def prompted(self):
        """Waits for the next prompt: before it the terminal reads by lines, and takes Ctrl-D itself."""
        self.wait_for("> ")

    def ends_with(self, status, seconds=30):
        assert self.process.wait(seconds) == status
        # What the program has changed of the terminal is as it was.
        assert termios.tcgetattr(self.follower)[:4] == self.before[:4]

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.leader)
        os.close(self.follower)
