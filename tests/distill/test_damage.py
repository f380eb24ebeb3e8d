"""A flipped bit or a cut of a checkpoint or a student: never other weights in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import load_student, save_student, student_provenance
from scalr.distill.interruption import Checkpoints
from scalr.distill.run_record import RunRecord
from scalr.distill.student import Student
from scalr.errors import StudentError

DAMAGES = 200  # of each kind of file
TRIALS = [pytest.param(range(20), id="some"), pytest.param(range(20, DAMAGES), id="all", marks=pytest.mark.slow)]
EDGE_BYTES = 4096  # where names, shapes and digests are: half of the flips
PROVENANCE = {"recipe": {"training": {"epochs": 25}}, "teachers": {"dinov2_vitl14": {"dim": 1024}}}


def damaged(content: bytes, trial: int) -> bytes:
    """With one bit flipped, or, each fourth time, cut off somewhere."""
    rng = np.random.default_rng(trial)
    edges = [rng.integers(EDGE_BYTES), len(content) - 1 - rng.integers(EDGE_BYTES)]
    place = int(edges[trial // 4 % 2] if trial % 2 else rng.integers(len(content)))
    if trial % 4 == 0:
        return content[:place]
    flipped = bytearray(content)
    flipped[place] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(WaffleIronConfig(width=8, depth=3, out_channels=4)).eval()


@pytest.mark.parametrize("trials", TRIALS)
def test_a_damaged_student_is_never_another_student(student, tmp_path, trials):
    path = tmp_path / "student.safetensors"
    save_student(student, path, PROVENANCE)
    content, refusals = path.read_bytes(), []
    for trial in trials:
        path.write_bytes(damaged(content, trial))
        try:
            provenance = student_provenance(path)  # of the header alone
            assert provenance == PROVENANCE
            found = load_student(path)
        except StudentError as error:
            refusals.append(error)
            continue
        assert (found.config, found.input_config) == (student.config, student.input_config), trial
        assert_equal(found.state_dict(), student.state_dict())
    assert len(refusals) > 0.9 * len(trials)
    assert {(error.where, "\n" in str(error)) for error in refusals} == {(str(path), False)}


@pytest.mark.parametrize("trials", TRIALS)
def test_a_damaged_checkpoint_is_never_gone_on_from(student, tmp_path, caplog, trials):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt", 0, RunRecord({"recipe": 1}, {}))
    for step in (1, 2):
        checkpoints.save({"step": step, "objective": {**student.state_dict(), "step": torch.tensor(step)}})
    content, before = (path.read_bytes() for path in (checkpoints.path, checkpoints.before))
    for trial in trials:
        checkpoints.path.write_bytes(damaged(content, trial))
        caplog.clear()
        found = checkpoints.load()
        assert_equal(found["objective"], {**student.state_dict(), "step": torch.tensor(1)})
        (warning,) = caplog.messages
        assert f"{checkpoints.path} " in warning
        assert str(checkpoints.before) in warning
        checkpoints.before.write_bytes(damaged(before, trial + DAMAGES))
        with pytest.raises(
            StudentError, match=r"no checkpoint can be resumed: this one .*, and the one before"
        ) as caught:
            checkpoints.load()
        assert caught.value.where == str(checkpoints.path)
        assert "Remove both files to start again, or choose another --out" in str(caught.value)
        checkpoints.before.write_bytes(before)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def test_the_damages_are_flips_and_cuts_all_over_a_file():
    content = bytes(20_000)
    results = [damaged(content, trial) for trial in range(DAMAGES)]
    cuts = [result for result in results if len(result) < len(content)]
    flips = [result for result in results if len(result) == len(content)]
    assert (len(cuts), len(flips)) == (DAMAGES // 4, DAMAGES * 3 // 4)
    places = [next(at for at, byte in enumerate(flip) if byte) for flip in flips]
    for low in range(0, len(content), 4000):
        assert any(low <= place < low + 4000 for place in places)


def test_file_names_are_those_of_the_pages(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt", 0, RunRecord({}, {}))
    assert checkpoints.before == Path(tmp_path / "checkpoint.before.pt")
