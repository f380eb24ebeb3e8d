"""The scripts of docs/batch.md on SLURM itself, as they stand."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from doc_examples import DOCS, indented
from one_node_slurm import Slurm, one_node, what_is_lacking
from scalr.cli import main
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.store import open_store
from store_comparison import assert_same_store

lacking = what_is_lacking()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(lacking), reason=f"no SLURM here ({', '.join(lacking)}): apt-get install slurm-wlm munge"),
]

TEACHER = "dinov2_vits14"
EXTRACTION = f"--teacher {TEACHER} --weights random --image-size 28x56 --batch-size 8 --frames-per-block 4"
# A student that trains in seconds, on a CPU; an option that is given twice counts as the last one.
TRAINING = (
    "--recipe demo --set student.width=8 --set student.depth=2 --set training.workers=0 --set training.batch_size=4"
    " --device cpu"
)
SCRIPTS = {
    "extract.sbatch": r"scalr extract .*--part",
    "distill.sbatch": r"--standalone [^`]*scalr distill",
    "distill_nodes.sbatch": r"--rdzv-id [^`]*scalr distill",
    "evaluate.sbatch": r"--standalone [^`]*scalr evaluate",
    "chain.sh": r"--dependency=afterok",
}


def scripts_of_the_page() -> dict[str, str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (DOCS / "batch.md").read_text(), re.DOTALL)
    found = {name: [block for block in blocks if re.search(what, block)] for name, what in SCRIPTS.items()}
    assert all(len(blocks) == 1 for blocks in found.values()), found
    return {name: block for name, (block,) in found.items()}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    """With the page's scripts, a world of 16 frames, and a finished store of them, in the folder where users are."""
    home = tmp_path_factory.mktemp("home")
    for name, text in scripts_of_the_page().items():
        (home / name).write_text(text)
    write_world(home / "world", train_scenes=4, val_scenes=1, keyframes=4)
    words = f"extract {EXTRACTION} --root {home}/world --out {home}/whole.zarr"
    assert CliRunner().invoke(main, words.split()).exit_code == 0
    # What pytest names is too long for munge's socket.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": binaries, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    try:
        with one_node(folder, home, environment) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def of_this_machine(slurm: Slurm, text: str) -> str:
    """A script's own places, and a teacher that is as quick as here."""
    (slurm.home / "shared").mkdir(exist_ok=True)
    text = text.replace("/shared/", f"{slurm.home}/shared/").replace("/data/nuscenes", f"{slurm.home}/world")
    changes = {
        "--precision bfloat16": "",
        "--teacher dinov2_vitl14 \\\n    --out": f"--teacher {TEACHER} {TRAINING} --set training.epochs=2 --out",
        "--teacher dinov2_vitl14": EXTRACTION,
        "--resume\n": "--resume --epochs 2 --warmup-epochs 0 --workers 0 --device cpu\n",
    }
    for shown, quick in changes.items():
        text = text.replace(shown, quick)
    return text


def test_the_chain_from_images_to_a_probe(slurm):
    """An array of 16 tasks, the check of its store, distillation and probing in four processes each."""
    script = of_this_machine(slurm, (slurm.home / "chain.sh").read_text())
    last = slurm.bash(f"{script}").split()[-1]
    ended = slurm.wait(last)
    assert [task["JobState"] for task in ended] == ["COMPLETED"], slurm.logs()
    assert_same_store(open_store(slurm.home / "shared/store.zarr"), open_store(slurm.home / "whole.zarr"))
    assert len(list(slurm.home.glob("scalr-extract-*.log"))) == 16
    assert json.loads((slurm.home / "shared/runs/probe/result.json").read_text())


def test_parts_that_are_stopped_and_submitted_again_are_parts_of_as_many(slurm):
    """One task is queued again while it runs; another one is cancelled, and submitted again by the page's two lines."""
    out = slurm.home / "shared/again.zarr"
    job = slurm.submit(f"--array=0-2 extract.sbatch {EXTRACTION} --root world --out {out}")
    logs = [slurm.home / f"scalr-extract-{task}.log" for task in range(3)]
    before = [log.read_text() if log.exists() else "" for log in logs]

    def started(task: int) -> bool:
        return logs[task].exists() and "loading PyTorch" in logs[task].read_text()[len(before[task]) :]

    slurm.wait_until(lambda: started(1) and started(2), "tasks start")
    slurm.bash(f"scontrol requeue {job}_1; scancel {job}_2")
    tasks = {task["ArrayTaskId"]: task for task in slurm.wait(job)}
    assert {number: task["JobState"] for number, task in tasks.items()} == {
        "0": "COMPLETED", "1": "COMPLETED", "2": "CANCELLED",
    }, slurm.logs()  # fmt: skip
    assert tasks["1"]["Restarts"] == "1"
    of_requeued = logs[1].read_text()[len(before[1]) :]
    assert of_requeued.count("loading PyTorch") == 2  # appended
    for task in (1, 2):
        text = logs[task].read_text()[len(before[task]) :]
        assert "Traceback" not in text
        assert "stopped by SIGTERM; committed blocks are kept. Run the same command again to continue" in text
    again = "\n".join(indented("batch.md", "To run the failed parts again"))
    again = of_this_machine(slurm, again.replace("store.zarr", "again.zarr"))
    last = slurm.bash(f"{again}\necho; echo $failed").split()
    job, failed = last[3], last[-1]
    assert failed == "2,3"  # part 3 was never submitted
    assert {task["JobState"] for task in slurm.wait(job)} == {"COMPLETED"}, slurm.logs()
    assert_same_store(open_store(out), open_store(slurm.home / "whole.zarr"))


@pytest.mark.parametrize("script", ["distill.sbatch", "--nodes=1 distill_nodes.sbatch"], ids=["one node", "nodes"])
def test_a_distillation_that_is_preempted_goes_on(slurm, script, tmp_path):
    """A job of another queue needs its GPUs: it writes a checkpoint, waits in the queue, and goes on from there."""
    out, log = tmp_path / "run", tmp_path / "job.log"
    options = f"--output={log} {script} --cache whole.zarr --teacher {TEACHER} --out {out} {TRAINING}"
    job = slurm.submit(f"{options} --set training.epochs=50")
    slurm.wait_until(lambda: rows(out) or ended_badly(slurm, job), "the first step")
    urgent = slurm.submit("--partition=urgent --gres=gpu:4 --output=urgent.log --wrap true")
    slurm.wait(urgent)
    (task,) = slurm.wait(job)
    text = log.read_text()
    assert (task["JobState"], task["Restarts"]) == ("COMPLETED", "1"), text + slurm.logs()
    assert len(re.findall(r"Error: .*checkpoint\.pt: stopped by a signal after step \d+ of 200", text)) == 1, text
    assert not re.findall(r"^W\d{4} .*", text, re.MULTILINE)  # torchrun's warnings
    assert [row["step"] for row in rows(out)] == [str(step) for step in range(1, 201)]
    assert (out / "student.safetensors").exists()


def rows(out: Path) -> list[dict[str, str]]:
    log = out / "log.csv"
    return list(csv.DictReader(log.open())) if log.exists() else []


def ended_badly(slurm: Slurm, job: str) -> bool:
    assert slurm.tasks(job)[0]["JobState"] not in ("FAILED", "CANCELLED"), slurm.logs()
    return False
