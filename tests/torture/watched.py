"""`dirl`, with its moments noted: `python -m tests.torture.watched FILE fit --config ...`."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    from tests.torture.moments import watch

    from dirl.cli.errors import entry, leave

    if os.environ.get("LOCAL_RANK", "0") == "0":
        watch(Path(sys.argv[1]))
    leave(entry(sys.argv[2:]))
