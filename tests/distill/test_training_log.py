from __future__ import annotations

import csv
import os
import resource
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from scalr.distill.training_log import FIELDS, TrainingLog, read_log
from scalr.errors import StudentError


def events(folder: Path) -> list[Event]:
    """What TensorBoard reads there."""
    return [event for path in sorted(folder.glob("events.*")) for event in LegacyEventFileLoader(str(path)).Load()]


def open_files(folder: Path) -> list[str]:
    """Those in a folder that this process holds open."""
    descriptors = Path("/proc/self/fd").iterdir()
    return [name for each in descriptors if (name := os.path.realpath(each)).startswith(str(folder))]


def test_a_row_is_a_line_and_events(tmp_path):
    """At once, so that a killed run keeps its curve; columns that a row has not stay empty."""
    log = TrainingLog(tmp_path / "run", ["loss_a", "loss_b"])
    log.write({"step": 1, "epoch": 0, "loss": 0.5, "loss_b": 2.0})
    assert len(open_files(tmp_path)) == 2
    with (tmp_path / "run/log.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [[*FIELDS, "loss_a", "loss_b"], ["1", "0", "0.5", "", "", "", "", "", "2.0"]]
    version, event = events(tmp_path / "run")
    assert version.file_version == "brain.Event:2"
    assert event.step == 1
    assert event.wall_time == pytest.approx(time.time(), abs=60)
    assert [(each.tag, each.simple_value) for each in event.summary.value] == [("loss", 0.5), ("loss_b", 2.0)]
    log.close()
    assert not open_files(tmp_path)
    with pytest.raises(ValueError, match="closed"):
        log.write({"step": 2})
    assert sorted(path.name.split(".")[0] for path in (tmp_path / "run").iterdir()) == ["events", "log"]


def test_a_resumed_log_is_whole_before_its_first_row(tmp_path):
    """As others see it, who look while the first step is made; values that are no columns are left out."""
    log = TrainingLog(tmp_path / "runs/one")
    log.write({"step": 1, "epoch": 0, "loss": 1.0, "loss_of_nobody": 3.0})
    log.close()
    log = TrainingLog(tmp_path / "runs/one", steps=1)
    assert [row["loss"] for row in read_log(tmp_path / "runs/one/log.csv")] == ["1.0"]
    log.close()


def test_fields_are_those_of_the_docs():
    assert FIELDS == ("step", "epoch", "loss", "learning_rate", "gradient_norm", "points_per_second", "data_wait")


def test_events_of_steps_that_are_made_again_are_purged(tmp_path):
    TrainingLog(tmp_path).close()
    TrainingLog(tmp_path, steps=7).close()
    assert [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START] == [8]


def test_a_log_of_another_run_is_replaced(tmp_path):
    for _ in range(2):
        log = TrainingLog(tmp_path)
        log.write({"step": 1, "epoch": 0, "loss": 1.0})
        log.close()
    assert len(read_log(tmp_path / "log.csv")) == 1
    assert read_log(tmp_path / "nowhere.csv") == []


def test_a_log_goes_on_where_the_checkpoint_was(tmp_path):
    for steps in (0, 2):
        log = TrainingLog(tmp_path, ["loss_a"], steps)
        for step in range(steps + 1, steps + 4):
            log.write({"step": step, "epoch": 0, "loss": step + steps / 10, "loss_a": 1.0})
        log.close()
    with (tmp_path / "log.csv").open("a") as file:
        file.write("6,0,1")  # killed while it wrote
    assert [float(row["loss"]) for row in read_log(tmp_path / "log.csv")] == [1, 2, 3.2, 4.2, 5.2]


def test_a_log_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "run").write_text("a file in its place")
    with pytest.raises(StudentError, match=r"run: the log cannot be written \(File exists\)\. Check which part"):
        TrainingLog(tmp_path / "run")


@pytest.mark.parametrize("more", [10, 100])  # bytes that fit: not the row of the log, or that and not the events
def test_a_disk_that_is_full_during_a_run_is_said(tmp_path, more):
    """Here a limit of bytes for a file stands for it."""
    log = TrainingLog(tmp_path)
    size = (tmp_path / "log.csv").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + more, hard))
    try:
        with pytest.raises(StudentError, match=r"the log cannot be written \(File too large\)\. Make room"):
            _write_rows(log)
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _write_rows(log: TrainingLog) -> None:
    for step in range(9):
        log.write({"step": step, "epoch": 0, "loss": 1.0})


def test_what_is_damaged_in_a_log_is_left_out(tmp_path):
    """A run goes on from its checkpoint, whatever has become of its curve."""
    path = tmp_path / "log.csv"
    whole = "step,epoch,loss\n1,0,0.5\n"
    for content in (b"", b"step,epoch\n1,0\n", bytes(range(256)) * 9, b"\n\n\n", b"\xff\xfe1,2,3"):
        path.write_bytes(content)
        assert read_log(path) == []
    for row in ("x,0,1.0", "2,0,", "2,0", "2,0,nan", "-2,0,1.0", "\x00,\x00,\x00"):
        path.write_text(f"{whole}{row}\n3,0,0.25\n")
        assert [row["step"] for row in read_log(path)] == ["1", "3"]


def test_a_log_that_cannot_be_read_is_said(tmp_path):
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(StudentError, match=r"log\.csv: the log cannot be read \(.*Is a directory.*\)\. Remove the log"):
        read_log(tmp_path / "log.csv")
    (tmp_path / "long.csv").write_text("step,epoch,loss\n" + "1" * 200_000)
    with pytest.raises(StudentError, match="the log cannot be read"):
        read_log(tmp_path / "long.csv")
