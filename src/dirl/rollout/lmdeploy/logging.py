"""What LMDeploy logs, and that it leaves the logging of others alone."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def warnings_alone() -> Iterator[None]:
    """Import LMDeploy in here: from then on it logs warnings and errors alone.

    At its first import it begins to log several lines for every request, and sets the handlers of the root logger to
    errors alone, so that the warnings of everybody else are lost.
    """
    levels = [(handler, handler.level) for handler in logging.getLogger().handlers]
    try:
        yield
    finally:
        for handler, level in levels:
            handler.setLevel(level)
        logging.getLogger("lmdeploy").setLevel(logging.WARNING)
