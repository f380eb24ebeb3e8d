"""Memory and time of a training step from the store, against the same step with the teacher in it.

    python tests/benchmarks/no_teacher.py [--teachers NAME …] [--recipe scalr_wi256] [--batch 4] [--device cpu]

The world is simulated, the teachers' weights are random: neither changes sizes or times. Each figure is of a process
of its own, which prepares its samples itself; a step is reading, (images and teacher,) student, loss, gradients and
optimiser.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from scalr.distill.dataset import DistillCollate, DistillDataset
from scalr.distill.objective import DistillObjective
from scalr.distill.recipe import load_recipe
from scalr.distill.run import new_student, with_head_for
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.datasets.synthetic import write_world
from scalr.extract.pipeline import teacher_footprint
from scalr.extract.run import ExtractConfig, extract
from scalr.extract.store import open_store
from scalr.extract.targets import EncodedTargets, sample_targets
from scalr.extract.teachers.teacher import load_teacher


class OnlineDataset(DistillDataset):
    """The same samples, with targets that the teacher makes when they are asked for."""

    def with_teacher(self, root: Path, device: torch.device) -> OnlineDataset:
        self.images = open_dataset("nuscenes", root, "train")
        self.views = {(frame.token, view.camera): view for frame in self.images.frames for view in frame.views}
        self.teacher = load_teacher(self.teachers[0], weights="random", device=device)
        return self

    def _targets(self, teacher, rows, views, pairs) -> EncodedTargets:
        (row,), (view,), ((_, pair),) = rows, views, pairs
        record = self.store.views.slice(row, 1).to_pylist()[0]
        image = read_image(self.images.root, self.views[record["token"], record["camera"]])
        patch_map = self.teacher.patch_maps(self.teacher.preprocessing.apply(image)[None])[0]
        targets = sample_targets(patch_map, teacher_footprint(self.teacher, view.pixel[pair], image.shape[:2]))
        return EncodedTargets(targets.cpu())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", default=["dinov2_vits14", "dinov2_vitl14"])
    parser.add_argument("--recipe", default="scalr_wi256")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="timed, after one that is not")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "TEACHER", "MODE"), help="(used by itself)")
    arguments = parser.parse_args()
    if arguments.measure:
        folder, teacher, mode = arguments.measure
        print(json.dumps(measure(Path(folder), teacher, mode == "online", arguments)))
        return
    print(
        f"{arguments.recipe}, {arguments.batch} samples a step, {arguments.device}, {torch.get_num_threads()} threads"
    )
    print("| teacher | targets | peak memory | step |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder / "world", train_scenes=2, val_scenes=1, keyframes=4, seed=0)
        for teacher in arguments.teachers:
            extract(
                ExtractConfig(teachers=(teacher,), root=folder / "world", out=folder / f"{teacher}.zarr",
                              weights=("random",), encoding="patch", device=arguments.device)
            )  # fmt: skip
            figures = {mode: in_its_own_process(folder, teacher, mode) for mode in ("cached", "online")}
            for mode, (memory, seconds) in figures.items():
                print(f"| {teacher} | {mode} | {memory / 2**30:.2f} GB | {seconds:.2f} s |")
            (less, faster) = np.divide(figures["online"], figures["cached"])
            print(f"| {teacher} | online / cached | {less:.2f} | {faster:.2f} |")


def in_its_own_process(folder: Path, teacher: str, mode: str) -> tuple[float, float]:
    command = [sys.executable, *sys.argv, "--measure", str(folder), teacher, mode]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def measure(folder: Path, teacher: str, online: bool, arguments: argparse.Namespace) -> tuple[float, float]:
    """Peak memory [bytes] of the process, or of the GPU, and the median of the steps' times [s]."""
    device, store = torch.device(arguments.device), open_store(folder / f"{teacher}.zarr")
    recipe = with_head_for(load_recipe(arguments.recipe), store.target_dim(teacher))
    kind = OnlineDataset if online else DistillDataset
    dataset = kind(store, (teacher,), recipe.inputs, recipe.sampling, recipe.augmentation, seed=0)
    if online:
        dataset.with_teacher(folder / "world", device)
    objective = DistillObjective(new_student(recipe), recipe.objective, (1.0,), recipe.student.out_channels)
    objective.to(device).train()
    optimiser = torch.optim.AdamW(objective.parameters())
    collate, times = DistillCollate(recipe.inputs), []
    for step in range(arguments.steps + 1):
        start = time.perf_counter()
        batch = collate([dataset[step, frame] for frame in range(arguments.batch)]).to(device)
        optimiser.zero_grad(set_to_none=True)
        loss, _ = objective(batch)
        loss.backward()
        optimiser.step()
        loss.item()
        times.append(time.perf_counter() - start)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak, statistics.median(times[1:])


if __name__ == "__main__":
    main()
