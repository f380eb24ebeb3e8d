"""Every figure of docs/ that needs a GPU, in under nine minutes on one, into a JSON file.

    make gpu                                                   # or, without make:
    python tests/benchmarks/gpu.py [--peer DIR] [--out gpu.json] [--only KIND …] [--minutes 8.5]
    python tests/benchmarks/gpu.py --device cpu --quick        # does all of it run? Its figures mean nothing

Needs a checkout, not an installation, and of Python's packages torch, timm, numba, pyarrow, safetensors and what these
bring; not zarr, dask or nuscenes-devkit: scans and their store are simulated (`simulated_store.py`). DIR of --peer is a
checkout of valeoai/WaffleIron, whose model then does the same work with the same weights. All weights are random, which
changes neither time nor memory. The file is written anew after each figure. A figure that might end later than after
`--minutes` is not begun; one that fails says why, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  # before scalr
import gpu_figures
import numpy as np
import torch
from gpu_figures import DIM, LIMITS, Figure
from official_waffleiron import official_model, padded
from simulated_store import (
    IMAGE_SHAPE,
    NUSCENES_LIDAR,
    TEACHER,
    Lidar,
    SimulatedStore,
    reads_of,
    simulated_scan,
    write_frames,
)
from torch import nn

from scalr.device import resolve_device
from scalr.distill.backbones.calls import packed
from scalr.distill.dataset import DistillBatch, DistillCollate, DistillDataset
from scalr.distill.inputs import evaluation_input
from scalr.distill.objective import DistillObjective
from scalr.distill.recipe import Recipe, load_recipe
from scalr.distill.run import new_student, with_head_for
from scalr.distill.sampling import EpochLoader
from scalr.distill.training import TrainingConfig, TrainingResult, train
from scalr.errors import ScalrError
from scalr.extract.intensity import intensity_statistics
from scalr.extract.targets import EncodedTargets
from scalr.extract.teachers.features import Feature, FeatureReader
from scalr.extract.teachers.teacher import Teacher, load_teacher

RECIPE, PRECISION = "scalr_wi256", "bfloat16"  # of comparisons that need one student
BESIDE_OFFICIAL = 2  # cameras: the official planes of 8 at width 768 are larger than a GPU's memory
PROFILED = 10  # operations
LONG_S = 2.0  # of the timed rounds of one figure
OUT_OF_TIME, OUT_OF_MEMORY, FAILED = "out of time", "out of memory", "failed: "


@dataclass(frozen=True)
class Sizes:
    """How much is measured with; the defaults are for a GPU."""

    figures: tuple[Figure, ...] = tuple(gpu_figures.figures())
    lidar: Lidar = NUSCENES_LIDAR
    frames: int = 16  # that are written
    num_frames: int = 4096  # that they stand for
    rounds: int = 10  # that are timed, fewer where they take long
    warmups: int = 3
    batches: int = 4  # different ones, which the rounds take in turn
    steps: int = 60  # of a training that may wait for data
    images: int | None = None  # of a teacher at once, in place of a figure's
    overrides: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of recipes, by backbone


NARROW = ("student.stem_width=2", "student.widths=[2,3,4,5,5,4,3,4]", "student.blocks=[1,1,1,1,1,1,1,1]")
QUICK = Sizes(
    figures=(
        Figure("parity", ("scalr_plus",)),
        Figure("parity", ("scalr_minkunet_vitl",)),
        Figure("step", ("scalr_wi256", "float32", "eager")),
        Figure("step", ("scalr_wi768", "bfloat16", "compiled")),
        Figure("scan", ("scalr_minkunet_vitl", "bfloat16")),
        Figure("beside", ("step", "scalr_wi768", "float32")),
        Figure("beside", ("scan", "scalr_wi256", "bfloat16")),
        Figure("teacher", ("dinov2_vits14", "float32", 16, "eager")),
        Figure("teacher", ("dinov2_vits14", "bfloat16", 256, "compiled")),
        Figure("targets", ("store",)),
        Figure("targets", ("dinov2_vits14",)),
        Figure("profile", ("scalr_wi256",)),
        Figure("wait", (0,)),
        Figure("wait", (1,)),
    ),
    lidar=Lidar(beams=16, azimuths=60),
    frames=1,
    num_frames=64,
    rounds=1,
    warmups=1,
    batches=1,
    steps=2,
    images=1,
    overrides={
        "waffleiron": ("student.width=8", "student.depth=3", "training.batch_size=2"),
        "minkunet": (*NARROW, "training.batch_size=2"),
    },
)


class Benchmark:
    """What figures are measured with; a method `measure_KIND` for each kind of them."""

    def __init__(self, sizes: Sizes, device: torch.device, folder: Path, peer: Path | None) -> None:
        self.sizes, self.device, self.folder, self.peer = sizes, device, folder, peer

    def measure(self, figure: Figure) -> dict[str, Any]:
        """What is known of the figure, or why it is not."""
        self._forget()
        try:
            return getattr(self, f"measure_{figure.kind}")(*figure.settings)
        except Exception as error:  # of torch.compile, of drivers, of ours: the other figures are wanted all the same
            if any(
                isinstance(each, torch.OutOfMemoryError) for each in (error, error.__context__)
            ):  # a teacher wraps it
                return {"not_measured": OUT_OF_MEMORY}
            traceback.print_exc()
            return {"not_measured": f"{FAILED}{type(error).__name__}"}

    def measure_parity(self, student: str) -> dict[str, Any]:
        """Output and gradients of a training step here, in each precision, against a CPU in float64."""
        recipe = self.recipe(student)
        if hasattr(recipe.student, "stochastic_depth"):  # draws differ from device to device
            recipe = replace(recipe, student=replace(recipe.student, stochastic_depth=0.0))
        batch = packed(recipe.inputs, [sample.scan for sample in self.samples(recipe, 2)])
        network = self.student(recipe).cpu()
        exact = _output_and_gradients(copy.deepcopy(network).double(), replace(batch, features=batch.features.double()))
        differences = {}
        for precision in LIMITS:
            here = copy.deepcopy(network).to(self.device)
            with torch.backends.cudnn.flags(allow_tf32=False), self.autocast(precision):
                found = _output_and_gradients(here, batch.to(self.device))
            differences[precision] = [_relative(*pair) for pair in zip(found, exact, strict=True)]
        passed = all(np.less(differences[precision], limits).all() for precision, limits in LIMITS.items())
        return {**differences, "passed": passed}

    def measure_step(self, student: str, precision: str, mode: str) -> dict[str, Any]:
        """A whole step of the training loop; its batch is ready."""
        recipe = self.recipe(student)
        batches = self.batches(recipe)
        objective = self.objective(recipe, compiled=mode == "compiled")
        seconds = self.step_seconds(objective, batches, replace(recipe.training, precision=precision))
        return {"seconds": seconds, "peak_gb": self.peak_gb(), "points": _mean_points(batches)}

    def measure_scan(self, student: str, precision: str) -> dict[str, Any]:
        """The network on a prepared scan, whole."""
        recipe = self.recipe(student)
        network, batch = self.student(recipe).eval(), self.scan(recipe).to(self.device)
        seconds = self.seconds_of(lambda: network(batch), precision, grad=False)
        return {"seconds": seconds, "peak_gb": self.peak_gb(), "points": batch.num_points}

    def measure_beside(self, task: str, student: str, precision: str) -> dict[str, Any]:
        """Our student and the official one with the same weights, forward and backward pass or a whole scan forward."""
        recipe = self.recipe(student)
        if task == "step":
            scans = [sample.scan for sample in self.samples(recipe, BESIDE_OFFICIAL)]
        else:
            scans = [self.prepared_scan(recipe)]
        inputs = packed(recipe.inputs, scans)
        figure, ours = self._pass_of(lambda: self.student(recipe), (inputs,), task, precision)
        self._forget()
        arguments = padded([scan.input for scan in scans], recipe.inputs)
        try:
            official, theirs = self._pass_of(
                lambda: official_model(self.student(recipe), self.peer), arguments, task, precision
            )
        except torch.OutOfMemoryError:
            return figure | {"official_not_measured": OUT_OF_MEMORY}
        if task == "scan":  # (M, D), and (1, D, M); padding makes batches differ while training
            figure["difference"] = _relative(ours, theirs[0].T)
        return figure | {f"official_{name}": value for name, value in official.items()}

    def measure_teacher(self, teacher: str, precision: str, images: int, mode: str) -> dict[str, Any]:
        """Prepared images to patch maps."""
        with self.teacher(teacher, precision, compiled=mode == "compiled") as loaded:
            batch = torch.randn(self.sizes.images or images, 3, *loaded.image_size, device=self.device)
            seconds = self.seconds_of(lambda: loaded.patch_maps(batch))
            return {"images_per_second": len(batch) / seconds, "peak_gb": self.peak_gb()}

    def measure_targets(self, source: str) -> dict[str, Any]:
        """A step with targets of a store, or of a teacher in memory, to which images come decoded."""
        recipe = self.recipe(RECIPE)
        training = replace(recipe.training, precision=PRECISION)
        if source == "store":
            seconds = self.step_seconds(self.objective(recipe), self.batches(recipe), training)
            return {"seconds": seconds, "peak_gb": self.peak_gb()}
        batches = self.batches(recipe, kind=MapsOfPairs)
        with self.teacher(source, PRECISION) as loaded:
            objective = WithTeacher(self.objective(with_head_for(recipe, loaded.dim), dim=loaded.dim), loaded)
            return {"seconds": self.step_seconds(objective, batches, training), "peak_gb": self.peak_gb()}

    def measure_profile(self, student: str) -> dict[str, Any]:
        """The operations that take most of a step's time on the device, and their shares of it, largest first."""
        recipe = self.recipe(student)
        objective, batches = self.objective(recipe), self.batches(recipe)
        training = replace(recipe.training, precision=PRECISION)
        self.step_seconds(objective, batches, training)  # what is done once is not of a step
        with torch.profiler.profile() as profiler:
            self.training(objective, batches, training, len(batches))
        operations = [each for each in profiler.key_averages() if each.device_type == torch.autograd.DeviceType.CPU]
        clock = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        times = {each.key: getattr(each, clock) for each in operations}
        largest = sorted(times, key=times.get, reverse=True)[:PROFILED]
        return {"shares": [(name, times[name] / sum(times.values())) for name in largest]}

    def measure_wait(self, workers: int) -> dict[str, Any]:
        """A training that reads the store; its workers have started before."""
        recipe, sizes = self.recipe(RECIPE), self.sizes
        training = replace(recipe.training, precision=PRECISION, workers=workers)
        objective, dataset = self.objective(recipe), self.dataset(recipe, DistillDataset)
        loader = EpochLoader([dataset], DistillCollate(recipe.inputs), batch_size=training.batch_size, seed=0,
                             workers=workers, device=self.device)  # fmt: skip
        with loader:
            batches = loader(0)
            self.training(objective, islice(batches, sizes.warmups), training, sizes.warmups)
            start = time.perf_counter()
            result = self.training(objective, islice(batches, sizes.steps), training, sizes.steps)
        return {"steps_per_second": sizes.steps / (time.perf_counter() - start), "share": result.data_wait}

    # What is measured

    def recipe(self, name: str) -> Recipe:
        """With a head for `DIM` dimensions, and a learning rate at which random targets harm nothing."""
        backbone = load_recipe(name).student.backbone
        recipe = with_head_for(load_recipe(name, self.sizes.overrides.get(backbone, ())), DIM)
        training = replace(recipe.training, schedule="cosine", warmup_steps=0, warmup_epochs=None, epochs=1,
                           learning_rate=1e-6, min_learning_rate=1e-6)  # fmt: skip
        return replace(recipe, training=training)

    def student(self, recipe: Recipe) -> nn.Module:
        student = new_student(recipe)
        if recipe.training.activation_checkpointing:
            student.checkpoint_activations("training.activation_checkpointing")
        return student.to(self.device)

    def objective(self, recipe: Recipe, *, dim: int = DIM, compiled: bool = False) -> DistillObjective:
        student = self.student(recipe)
        if compiled:
            torch.compiler.reset()  # as for teachers
            student.compile_layers()
        return DistillObjective(student, recipe.objective, (1.0,), dim).to(self.device)

    @cached_property
    def store(self) -> SimulatedStore:
        write_frames(self.folder, self.sizes.frames, DIM, self.sizes.lidar)
        return SimulatedStore(self.folder, self.sizes.frames, DIM, self.sizes.num_frames)

    def dataset(self, recipe: Recipe, kind: type[DistillDataset]) -> DistillDataset:
        return kind(self.store, (TEACHER,), recipe.inputs, recipe.sampling, recipe.augmentation, seed=0)

    def samples(self, recipe: Recipe, count: int, first: int = 0, kind: type[DistillDataset] = DistillDataset) -> list:
        dataset = self.dataset(recipe, kind)
        return [dataset[first, frame % len(dataset)] for frame in range(first, first + count)]

    def batches(self, recipe: Recipe, kind: type[DistillDataset] = DistillDataset) -> list[DistillBatch]:
        """As a loader gives them: in pinned memory where they go to a GPU."""
        collate, size = DistillCollate(recipe.inputs), recipe.training.batch_size
        batches = [collate(self.samples(recipe, size, number * size, kind)) for number in range(self.sizes.batches)]
        return [batch.pin_memory() for batch in batches] if self.device.type == "cuda" else batches

    def prepared_scan(self, recipe: Recipe) -> Any:
        points = simulated_scan(np.random.default_rng(0), self.sizes.lidar)
        return evaluation_input(points, intensity_statistics("nuscenes"), recipe.inputs)

    def scan(self, recipe: Recipe) -> Any:
        return packed(recipe.inputs, [self.prepared_scan(recipe)])

    @contextmanager
    def teacher(self, name: str, precision: str, *, compiled: bool = False) -> Iterator[Teacher]:
        """On the device for a while."""
        loaded = random_teacher(name)
        model, provenance = loaded.model, replace(loaded.provenance, precision=precision)
        if compiled:
            torch.compiler.reset()  # after some other sizes of the same code, torch would no longer compile it
            model = copy.deepcopy(model)
            for block in model.blocks:
                block.compile()
        reader = FeatureReader(Feature.parse(provenance.feature).resolved(len(model.blocks)), model)
        try:
            yield Teacher(reader, provenance, self.device)
        finally:
            model.cpu()

    # How it is measured

    def step_seconds(self, objective: nn.Module, batches: Sequence[DistillBatch], training: TrainingConfig) -> float:
        """The median of the loop's steps, which each wait for the device."""
        stamps, steps = [], self.sizes.warmups + self.sizes.rounds

        def stamped() -> Iterator[DistillBatch]:
            for batch in islice(cycle(batches), steps):
                stamps.append(time.perf_counter())
                yield batch

        self.training(objective, stamped(), training, steps)
        stamps.append(time.perf_counter())
        return statistics.median(np.diff(stamps)[self.sizes.warmups :].tolist())

    def training(
        self, objective: nn.Module, batches: Iterable[DistillBatch], training: TrainingConfig, steps: int
    ) -> TrainingResult:
        objective.train()
        return train(objective, lambda epoch, first: batches, training, steps_per_epoch=steps, device=self.device,
                     description="steps")  # fmt: skip

    def seconds_of(self, action: Callable[[], Any], precision: str = "float32", *, grad: bool = True) -> float:
        """The median of some calls."""
        times, warmups = [], self.sizes.warmups
        with nullcontext() if grad else torch.no_grad(), self.autocast(precision):
            while len(times) <= warmups or (len(times) < warmups + self.sizes.rounds and sum(times[warmups:]) < LONG_S):
                self.synchronise()
                start = time.perf_counter()
                action()
                self.synchronise()
                times.append(time.perf_counter() - start)
        return statistics.median(times[warmups:])

    def _pass_of(
        self, new_model: Callable[[], nn.Module], arguments: Sequence[Any], task: str, precision: str
    ) -> tuple[dict[str, Any], torch.Tensor]:
        """Time and memory of passes through a model, and its output on the CPU."""
        model, arguments, outputs = new_model(), [each.to(self.device) for each in arguments], []
        model.train(task == "step")

        def once() -> None:
            model.zero_grad()
            outputs.clear()  # before the next takes its memory
            outputs.append(model(*arguments))
            if task == "step":
                outputs[0].float().square().mean().backward()

        seconds = self.seconds_of(once, precision, grad=task == "step")
        return {"seconds": seconds, "peak_gb": self.peak_gb()}, outputs[0].detach().float().cpu()

    def autocast(self, precision: str) -> AbstractContextManager:
        return torch.autocast(self.device.type, getattr(torch, precision), enabled=precision != "float32")

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_gb(self) -> float | None:
        """Of the device, since the figure was begun; nobody counts it on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None

    def _forget(self) -> None:
        """What other figures have left on the device."""
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


class MapsOfPairs(DistillDataset):
    """Samples whose targets are yet to come: what their pairs read of whole patch maps."""

    def _targets(self, teacher, rows, views, pairs) -> EncodedTargets:
        (view,), ((_, pair),) = views, pairs
        reads = reads_of(view.pixel[pair])
        return EncodedTargets(torch.zeros(reads.map_patches, 1), rows=reads.patches, weights=reads.weights)


class WithTeacher(nn.Module):
    """An objective whose targets a teacher makes of images, in the step, as the official code does."""

    def __init__(self, objective: DistillObjective, teacher: Teacher) -> None:
        super().__init__()
        self.objective, self.teacher = objective, teacher
        self.image = np.random.default_rng(0).integers(0, 256, (*IMAGE_SHAPE, 3), dtype=np.uint8)

    def forward(self, batch: DistillBatch) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.stack([self.teacher.preprocessing.apply(self.image) for _ in batch.samples])
        maps = self.teacher.patch_maps(images).flatten(0, 2)
        (reads,) = batch.targets
        return self.objective(replace(batch, targets=(replace(reads, vectors=maps),)))


@lru_cache
def random_teacher(name: str) -> Teacher:
    """On the CPU: to draw its weights takes longer than to copy them."""
    return load_teacher(name, weights="random")


def _output_and_gradients(network: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a training step, both flat and in float64 on the CPU."""
    output = network.train()(batch)
    output.to(torch.promote_types(output.dtype, torch.float32)).square().mean().backward()
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    return output.detach().flatten().double().cpu(), torch.cat(gradients).double().cpu()


def _relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def _mean_points(batches: Sequence[DistillBatch]) -> int:
    return round(statistics.mean(batch.num_points for batch in batches))


def measure_all(
    benchmark: Benchmark, kinds: Sequence[str] = (), *, quick: bool = False, minutes: float = 8.5,
    save: Callable[[dict], None] = lambda results: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure one figure after the other, hand on what is known after each, and return all of it."""
    start, figures = time.perf_counter(), {}
    results = {"quick": quick, "seconds": 0.0, "machine": machine(benchmark), "figures": figures}
    for figure in benchmark.sizes.figures:
        if (kinds and figure.kind not in kinds) or (figure.kind == "beside" and benchmark.peer is None):
            continue
        is_late = time.perf_counter() - start + figure.about_s > 60 * minutes
        figures[figure.key] = {"not_measured": OUT_OF_TIME} if is_late else benchmark.measure(figure)
        results["seconds"] = time.perf_counter() - start
        values = ", ".join(f"{name} {_short(value)}" for name, value in figures[figure.key].items())
        print(f"{results['seconds']:5.0f} s  {figure.key:<48} {values}", flush=True)
        save(results)
    return results


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine(benchmark: Benchmark) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    is_gpu, recipe = benchmark.device.type == "cuda", benchmark.recipe(RECIPE)
    return {
        "device": torch.cuda.get_device_name(benchmark.device) if is_gpu else "a CPU",
        "cuda": torch.version.cuda if is_gpu else None,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "points_of_step": _mean_points(benchmark.batches(recipe)),
        "points_of_scan": benchmark.scan(recipe).num_points,
    }


def faults(results: dict[str, Any]) -> list[str]:
    """Figures that failed, and students that compute something else on this device."""
    return [
        key
        for key, figure in results["figures"].items()
        if figure.get("not_measured", "").startswith(FAILED) or figure.get("passed") is False
    ]


def written_whole(path: Path, results: dict[str, Any]) -> None:
    """A run that is killed leaves the figures that it had."""
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = list(dict.fromkeys(figure.kind for figure in gpu_figures.figures()))
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="the smallest sizes and a few figures, to see that it runs"
    )
    parser.add_argument("--peer", type=Path, help="a checkout of valeoai/WaffleIron, to measure beside it")
    parser.add_argument("--only", nargs="+", choices=kinds, default=[], help="kinds of figures")
    parser.add_argument("--minutes", type=float, default=8.5, help="when no more figures are begun")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    if options.peer is not None and not options.peer.is_dir():
        parser.error(f"--peer {options.peer}: no such folder")
    if options.out.is_dir() or not options.out.parent.is_dir():
        parser.error(f"--out {options.out}: no file can be written there")
    try:
        device = resolve_device(options.device)
    except ScalrError as error:
        parser.error(str(error))
    eager = torch.compiler.set_stance("force_eager") if options.quick else nullcontext()  # compiling takes a minute
    with tempfile.TemporaryDirectory() as folder, eager:
        benchmark = Benchmark(QUICK if options.quick else Sizes(), device, Path(folder), options.peer)
        results = measure_all(benchmark, options.only, quick=options.quick, minutes=options.minutes,
                              save=lambda results: written_whole(options.out, results))  # fmt: skip
    print(gpu_figures.tables(results))
    if found := faults(results):
        sys.exit(f"failed, or not the same as on a CPU: {'; '.join(found)}")


if __name__ == "__main__":
    main()
