"""`python -m dirl.cli.help [FOLDER]` writes the help texts from the parsers."""

import contextlib
import io
import os
import sys
from pathlib import Path

from dirl.cli import help as texts
from dirl.cli.main import run_command


def made(topic: str) -> str:
    """The text of a topic, as its parser prints it."""
    name, *options = texts.TOPICS[topic]
    os.environ["COLUMNS"], sys.argv = str(texts.WIDTH), ["dirl"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run_command(name, options)
    return out.getvalue()


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else texts.FOLDER
    for topic in texts.TOPICS:
        path = folder / f"{topic}.txt"
        path.write_text(f"{texts.versions()}\n{made(topic)}", encoding="utf-8")
        print(path)
