"""Times of steps, read from event files that TensorBoard's own writer has written."""

import time
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from dirl.report.wall_times import clock_of


def write_events(folder: Path, after: dict[int, float]) -> Path:
    """Seconds after its head, which has the time of now."""
    now = time.time()
    writer = SummaryWriter(str(folder))
    writer.add_text("settings", "x", 0, walltime=now + 0.5)
    for step, seconds in after.items():
        writer.add_scalar("train/loss", 1.0, step, walltime=now + seconds)
    writer.close()
    (path,) = folder.glob("events*")
    return path


def near(seconds: list[float]) -> object:
    return pytest.approx(seconds, abs=0.3)


def test_each_step_has_the_seconds_since_the_run_began(tmp_path: Path) -> None:
    write_events(tmp_path, {1: 2.0, 2: 3.5, 300: 10.0})
    steps, seconds = clock_of([tmp_path])
    assert steps == [0, 1, 2, 300] and seconds == near([0.5, 2.0, 3.5, 10.0])


def test_what_a_killed_start_did_beyond_its_checkpoint_counts_once(tmp_path: Path) -> None:
    write_events(tmp_path / "a", {1: 10.0, 2: 20.0, 3: 30.0})
    write_events(tmp_path / "b", {2: 10.0, 3: 20.0})
    steps, seconds = clock_of([tmp_path / "a", tmp_path / "b"])
    assert steps == [0, 1, 2, 3] and seconds == near([0.5, 10.0, 20.0, 30.0])


def test_a_file_that_is_cut_off_ends_where_it_is(tmp_path: Path) -> None:
    path = write_events(tmp_path, {1: 2.0, 2: 4.0})
    path.write_bytes(path.read_bytes()[:-7])
    steps, seconds = clock_of([tmp_path])
    assert steps == [0, 1] and seconds == near([0.5, 2.0])


def test_without_event_files_there_is_no_clock(tmp_path: Path) -> None:
    assert clock_of([tmp_path]) == ([], [])
