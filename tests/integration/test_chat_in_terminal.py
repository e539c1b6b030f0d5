"""The command `chat` in a terminal: questions, answers, Ctrl-C."""

import codecs
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.tiny import TinyModel

from dirl.models.export import save_model

pytestmark = pytest.mark.slow
PATIENCE_S = 60


class Terminal:
    """A command with a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.fd, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", "COLUMNS": "80", "LINES": "24"}
        options = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "env": env, "start_new_session": True}
        self.process = subprocess.Popen(command, **options, preexec_fn=_take_terminal)
        os.close(theirs)
        self.said, self.decoder = "", codecs.getincrementaldecoder("utf-8")("replace")

    def until(self, text: str) -> str:
        """What it says until then; it begins behind what was waited for last."""
        end = time.monotonic() + PATIENCE_S
        while text not in self.said:
            assert time.monotonic() < end, f"no {text!r} in {self.said!r}"
            if select.select([self.fd], [], [], 0.5)[0]:
                try:
                    self.said += self.decoder.decode(os.read(self.fd, 65536))
                except OSError:  # Linux's way to say that it has ended
                    assert text in self.said, self.said
        before, _, self.said = self.said.partition(text)
        return before

    def write(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C at a prompt; a moment later, for Python misses a signal between the prompt and its wait for a line."""
        self.until("› ")
        time.sleep(0.5)
        self.write("\x03")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


def _take_terminal() -> None:
    """So that Ctrl-C reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_chat_answers_stops_and_ends(tmp_path: Path) -> None:
    source = TinyModel()
    description = source.describe()
    description.config.max_position_embeddings = 100_000
    save_model(tmp_path / "model", source.build(description.config), description.tokenizer)
    options = ("--decoding.max_response_tokens=8", "--decoding.temperature=1", "--history=false")
    terminal = Terminal(sys.executable, "-m", "dirl.cli", "chat", "--model", str(tmp_path / "model"), *options)
    try:
        terminal.until("/help lists the commands")
        terminal.until("› ")
        terminal.write("1+2=\n")
        shown = terminal.until("tokens/s")
        assert "▒" in shown and "denoising steps:" in shown
        terminal.until("› ")
        terminal.write("/threshold 2\n")
        terminal.until("error: decoding.threshold=2.0: use a probability in (0, 1]")
        terminal.write("/max 60000\n/temperature 0\n/strategy sequential\n")
        terminal.until("strategy sequential")
        terminal.write("1+2=\n")
        for _ in range(20):
            terminal.until("▒")
        terminal.write("\x03")
        terminal.until("stopped after")
        terminal.until("› ")
        terminal.write("/max 4\n")
        terminal.until("max 4")
        terminal.interrupt()
        terminal.until("Ctrl-C again ends")
        terminal.interrupt()
        terminal.until("stopped by SIGINT")
        assert terminal.process.wait(30) == 128 + signal.SIGINT
    finally:
        terminal.close()
