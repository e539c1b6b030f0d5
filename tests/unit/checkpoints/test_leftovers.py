"""What killed starts of a run leave beside its checkpoints."""

import os
from pathlib import Path

from dirl.checkpoints.files import clear_run, part_of


def ended_process() -> int:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_start_removes_what_killed_ones_were_writing_in_folders_of_their_own(tmp_path: Path) -> None:
    gone = str(ended_process())
    for folder in ("", "checkpoints", "logs/version_0/checkpoints", "logs/version_1/checkpoints"):
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / "step=1.ckpt").write_text("whole")
        mine = part_of(place / "step=2.ckpt")
        mine.write_text("under way")
        mine.with_name(mine.name.replace(str(os.getpid()), gone)).write_text("half")
        sharded = part_of(place / "step=3.ckpt")
        sharded = sharded.with_name(sharded.name.replace(str(os.getpid()), gone))
        sharded.mkdir()
        (sharded / "shard").write_text("half")
    assert len(clear_run(tmp_path)) == 8
    assert len(list(tmp_path.rglob("*.ckpt"))) == 4
    assert len(list(tmp_path.rglob(".*.part"))) == 4, "another start may be writing"
    assert clear_run(tmp_path) == clear_run(tmp_path / "nowhere") == []
