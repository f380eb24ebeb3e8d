"""One run in one folder: on one machine, on several, and after a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from durable_moves import DurableMoves
from scalr import folder_lock
from scalr.checkpoint_files import write_bytes
from scalr.errors import StudentError
from scalr.folder_lock import CLAIM, locked

HOLD = "import sys; from pathlib import Path; from scalr.folder_lock import locked\nwith locked(Path(sys.argv[1])):\n"
WAIT = "    print('held', flush=True); sys.stdin.read()\n"


def hold_elsewhere(folder: Path) -> subprocess.Popen:
    """Another process that holds a folder until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + WAIT, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def claims(folder: Path) -> list[Path]:
    return list(folder.glob(f"*{CLAIM}*"))


def of_another_machine(folder: Path, **changes: object) -> Path:
    """A claim as a process of another machine writes it."""
    path = folder / f"{CLAIM}other"
    folder.mkdir(exist_ok=True)
    values = {"host": "node7", "pid": 1234, "started": "5", "machine": "another boot", "holds": True} | changes
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def quick(monkeypatch):
    """Tenths of a second in place of a minute."""
    monkeypatch.setattr(folder_lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(folder_lock, "GONE_AFTER_SECONDS", 0.4)


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    holder = hold_elsewhere(tmp_path / "run")
    with pytest.raises(
        StudentError, match=f"another run writes to this folder: process {holder.pid} on .*Choose another"
    ):
        locked(tmp_path / "run").__enter__()
    holder.communicate("")
    with locked(tmp_path / "run"):
        assert len(claims(tmp_path / "run")) == 1
    assert not (tmp_path / "run").exists()  # nothing was written into it


def test_a_claim_is_whole_on_disk_before_others_see_it(tmp_path, monkeypatch):
    moves = DurableMoves(monkeypatch)
    with locked(tmp_path) as lock:
        assert moves.targets == [lock._path, lock._path]  # once when it is made, and when it holds
        assert json.loads(lock._path.read_text())["holds"] is True
    assert not [each for each in moves.complaints if f"came before {tmp_path}/." in each]


def test_a_killed_process_holds_nothing(tmp_path):
    holder = hold_elsewhere(tmp_path)
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
    with locked(tmp_path):
        assert len(claims(tmp_path)) == 1
    holder.wait()
    assert not claims(tmp_path)


def test_another_process_with_the_number_of_one_that_is_gone_holds_nothing(tmp_path):
    of_another_machine(tmp_path, pid=os.getppid(), machine=folder_lock._machine())
    with locked(tmp_path):
        assert len(claims(tmp_path)) == 1


def test_through_another_mount_of_the_folder(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    mounted = subprocess.run(["mount", "--bind", tmp_path / "one", tmp_path / "two"], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no second mount can be made here: {mounted.stderr.strip()}")
    try:
        holder = hold_elsewhere(tmp_path / "one")
        with pytest.raises(StudentError, match=f"another run writes to this folder: process {holder.pid} on "):
            locked(tmp_path / "two").__enter__()
        holder.kill()
        holder.wait()
        with locked(tmp_path / "two"):
            assert len(claims(tmp_path / "one")) == 1
    finally:
        subprocess.run(["umount", tmp_path / "two"], check=True)


def test_a_process_of_another_machine_that_lives_is_seen_by_its_touches(tmp_path, quick):
    claim, ended = of_another_machine(tmp_path), threading.Event()

    def touch() -> None:
        while not ended.wait(0.05):
            os.utime(claim)

    beat = threading.Thread(target=touch)
    beat.start()
    try:
        with pytest.raises(StudentError, match="another run writes to this folder: process 1234 on node7"):
            locked(tmp_path).__enter__()
    finally:
        ended.set()
        beat.join()
    assert claims(tmp_path) == [claim]  # the one that was refused took its own back


def test_a_process_of_another_machine_that_is_gone_holds_nothing(tmp_path, quick):
    of_another_machine(tmp_path)
    with locked(tmp_path):
        assert [path.name for path in claims(tmp_path)] != [f"{CLAIM}other"]


def test_a_holder_touches_its_claim(tmp_path, quick):
    with locked(tmp_path):
        (claim,) = claims(tmp_path)
        before, until = claim.stat().st_mtime_ns, time.monotonic() + 20
        while claim.stat().st_mtime_ns == before:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_claim_that_cannot_be_read_counts_until_it_is_no_longer_touched(tmp_path, quick):
    (tmp_path / f"{CLAIM}cut").write_text('{"host": "no')
    with locked(tmp_path):
        assert len(claims(tmp_path)) == 1


def test_of_many_that_begin_at_once_one_holds_at_a_time(tmp_path):
    """Each adds one to a number that it has read before: sums would be lost if two held the folder."""
    number = tmp_path / "number"
    number.write_text("0")
    held = threading.Lock()

    def run() -> None:
        for _ in range(3):
            try:
                with locked(tmp_path):
                    assert held.acquire(blocking=False)
                    value = int(number.read_text())
                    time.sleep(0.005)
                    number.write_text(str(value + 1))
                    done.append(1)
                    held.release()
            except StudentError:
                continue

    done: list[int] = []
    runs = [threading.Thread(target=run) for _ in range(6)]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert int(number.read_text()) == len(done) > 0
    assert not claims(tmp_path)


def test_one_whose_claim_was_taken_for_gone_stops(tmp_path):
    with locked(tmp_path) as lock:
        lock.require()
        claims(tmp_path)[0].unlink()
        with pytest.raises(StudentError, match="another run has started in this folder"):
            lock.require()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StudentError, match=r"the lock cannot be written .*which part of the path is a file, or choose another"
    ):
        locked(tmp_path / "file" / "run").__enter__()


def test_nothing_is_written_into_a_folder_that_was_lost(tmp_path):
    """Neither students nor results: another run has begun there, while this one stood still."""
    with locked(tmp_path):
        write_bytes(tmp_path / "copies/result.json", b"before")
        claims(tmp_path)[0].unlink()
        with pytest.raises(StudentError, match="another run has started in this folder"):
            write_bytes(tmp_path / "copies/result.json", b"after")
    write_bytes(tmp_path / "result.json", b"of nobody's run")
    assert (tmp_path / "copies/result.json").read_bytes() == b"before"
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == ["result.json"]


def test_only_folders_that_it_made_are_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "mine/a/b", tmp_path / "c"):
        with locked(folder):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_claim_can_be_read_by_others_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        with locked(tmp_path):
            assert claims(tmp_path)[0].stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_a_lock_that_finds_no_room_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", on_a_full_disk)
    with pytest.raises(StudentError, match=r"the lock cannot be written \(No space left"):
        locked(tmp_path / "run").__enter__()
    assert list(tmp_path.iterdir()) == []


def on_a_full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
