"""Linear probing of a teacher's stored targets: an upper bound for its students, before any student is trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset as TorchDataset

from ..counted import counted
from ..device import resolve_device
from ..distill.heads import probe_head
from ..distill.sampling import EpochLoader
from ..distill.standardisation import Standardisation, Standardise
from ..distill.training import Observer, TrainingConfig, train
from ..errors import StoreError
from ..extract.datasets import open_dataset
from ..extract.datasets.frame import Dataset, Frame
from ..extract.datasets.scans import read_labelled_scan
from ..extract.plan import frames_digest
from ..extract.statistics import TeacherStatistics
from ..extract.store import FeatureStore, open_store
from ..folder_lock import locked
from ..progress import progress
from ..settings import Amount, Count, Seed, Settings, Workers
from .labelled_scans import require_labelled, unlabelled
from .metrics import confusion_matrix
from .origin import teacher_summary
from .probe import FeatureBatch, HeadObjective
from .result import data_of, result_of_scores, write_result
from .schedules import changed, probing
from .scores import Scores
from .scoring import scenes_of
from .stored_scans import rows_in_scan
from .supervision import require_new, training_config

logger = logging.getLogger(__name__)

PAIRS_OF_A_VIEW = 2048  # training pairs, drawn again in each epoch; scoring uses all pairs
FEATURES: dict[Standardise, str] = {
    "none": "targets as unit vectors, as students learn them",
    "centre": "targets less the mean of the training store's, as unit vectors (standardise centre)",
    "phi_s": "targets less the mean of the training store's and rotated, as unit vectors (standardise phi_s)",
}


@dataclass(frozen=True, kw_only=True)
class TeacherProbeConfig(Settings):
    """One probing of stored targets; the fields are the options of `scalr evaluate teacher`."""

    cache: Path  # store with the training split's targets
    root: Path  # folder of the dataset, for its labels
    out: Path
    val_cache: Path | None = None  # store with the validation split's targets; None: the same store
    teacher: str | None = None  # None: the only teacher of the store
    standardise: Standardise = "none"  # with the statistics of the training split
    dataset: str = "nuscenes"
    train_split: str = "train"
    val_split: str = "val"
    epochs: Count | None = None
    batch_size: Count | None = None
    learning_rate: Amount | None = None
    workers: Workers = 0
    seed: Seed = 0
    device: str = "auto"


@dataclass(frozen=True)
class StoredFrame:
    """A frame of a dataset, and the rows of its views in a store."""

    frame: Frame
    rows: tuple[int, ...]


class LabelledTargets(TorchDataset):
    """The targets of a split's pairs as unit vectors, with labels: students learn directions of targets only.

    Attributes:
        standardisation: applied to the targets before they become unit vectors; None for none.

    Raises:
        StoreError: the store has no targets of the teacher's pairs in this split, or has other scans than the dataset.
    """

    standardisation: Standardisation | None = None

    def __init__(self, store: FeatureStore, teacher: str, dataset: Dataset, seed: int) -> None:
        store.require_targets_of_pairs(teacher)
        self.store, self.teacher, self.dataset, self.seed = store, teacher, dataset, seed
        self.frames = _stored_frames(store, teacher, dataset)

    @property
    def statistics(self) -> TeacherStatistics:
        """Statistics of the teacher's vectors in the sources of these frames."""
        rows = [row for stored in self.frames for row in stored.rows]
        blocks = set(self.store.column("block")[rows].tolist())
        return self.store.statistics(self.teacher, [s for s in self.store.sources if not blocks.isdisjoint(s.blocks)])

    def __len__(self) -> int:
        return len(self.frames)

    def name_of(self, frame: int) -> str:
        """Store and frame, for people."""
        return f"{self.store.path} frame {self.frames[frame].frame.token}"

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets (R, D) float32 and labels (R,) int64 of some pairs of all views of `key` = (visit, frame)."""
        visit, number = key
        return self.read(number, np.random.default_rng([self.seed, visit, number]))

    def read(self, number: int, rng: np.random.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The pairs of all views of a frame; with `rng`, at most PAIRS_OF_A_VIEW pairs of each view."""
        stored = self.frames[number]
        points, labels = read_labelled_scan(self.dataset, stored.frame)
        targets, of_pairs = [], []
        for row in stored.rows:
            view = self.store.read_view(row, self.teacher)
            label = labels[rows_in_scan(view.points, points, stored.frame, self.store.path)][view.point_index]
            pairs = np.arange(len(label))
            if rng is not None and len(pairs) > PAIRS_OF_A_VIEW:
                pairs = np.sort(rng.choice(pairs, PAIRS_OF_A_VIEW, replace=False))
            targets.append(view.encoded.select(torch.from_numpy(pairs)).decode())
            of_pairs.append(torch.from_numpy(label[pairs].astype(np.int64)))
        vectors = torch.cat(targets)
        vectors = vectors if self.standardisation is None else self.standardisation([vectors])
        return F.normalize(vectors, dim=1), torch.cat(of_pairs)


@dataclass(frozen=True)
class TargetCollate:
    """Concatenate the pairs of several frames (a class, so that it can be pickled for workers)."""

    def __call__(self, samples: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> FeatureBatch:
        targets, labels = zip(*samples, strict=True)
        return FeatureBatch(torch.cat(targets), torch.cat(labels))


def probe_teacher(config: TeacherProbeConfig) -> Scores:
    """Train BatchNorm + a linear layer on stored targets, score it on every pair of the validation split.

    Writes `log.csv`, `result.md` and `result.json` into `config.out`.

    Raises:
        ScalrError: a store, the dataset or the output folder cannot be used.
    """
    with locked(config.out):
        require_new(config.out)
        return _probe_teacher(config, resolve_device(config.device))


def _probe_teacher(config: TeacherProbeConfig, device: torch.device) -> Scores:
    store = open_store(config.cache)
    val_store = store if config.val_cache is None else open_store(config.val_cache)
    teacher = config.teacher or store.only_teacher()
    store.require_same_targets(val_store, teacher)
    training_set, validation_set = (
        LabelledTargets(each, teacher, open_dataset(config.dataset, config.root, split, need="labels"), config.seed)
        for each, split in ((store, config.train_split), (val_store, config.val_split))
    )
    for each in (training_set, validation_set):
        require_labelled(each.dataset)
    if config.standardise != "none":
        statistics = {teacher: training_set.statistics}
        training_set.standardisation = Standardisation.of(config.standardise, statistics, (1.0,), "--standardise")
        validation_set.standardisation = training_set.standardisation
    values = {"epochs": config.epochs, "batch_size": config.batch_size, "learning_rate": config.learning_rate}
    schedule, departures = changed(probing("scalr", config.dataset), values)
    if config.standardise != "none":
        departures = [*departures, f"standardise {config.standardise}, not none"]
    training = training_config(schedule, workers=config.workers, seed=config.seed)
    logger.info("probing the targets of %s in %s", teacher, counted(len(training_set), "frame"))
    head = fit_head(training_set, training, device, config.out)
    scores = score_targets(head, validation_set, device)
    result = result_of_scores(
        scores,
        title=f"Linear probing of the targets of {teacher} on {training_set.dataset.name}",
        departures=departures,
        protocol={
            "dataset": config.dataset,
            **data_of(config.root),
            "split": config.val_split,
            "scored_points": "every pair of a labelled point and a camera that sees it",
            "features": FEATURES[config.standardise],
            "pairs_of_a_view": PAIRS_OF_A_VIEW,
            "schedule": asdict(schedule),
            "seed": config.seed,
            "mean_over": scores.mean_over,
            "frames": scores.num_frames,
            "frames_sha256": scores.frames_sha256,
        },
        provenance={
            "store": str(config.cache),
            "val_store": str(val_store.path),
            "teachers": teacher_summary({"teachers": {teacher: store.teachers[teacher]}}),
        },
    )
    write_result(result, config.out)
    return scores


def fit_head(targets: LabelledTargets, training: TrainingConfig, device: torch.device, log_folder: Path) -> nn.Module:
    """BatchNorm + a linear layer, trained on the targets, in eval mode."""
    head = probe_head(targets.store.target_dim(targets.teacher), len(targets.dataset.class_names)).to(device)
    loader = EpochLoader(
        [targets],
        TargetCollate(),
        batch_size=training.batch_size,
        seed=training.seed,
        workers=training.workers,
        device=device,
    )
    with loader:
        train(
            HeadObjective(head),
            loader,
            training,
            steps_per_epoch=loader.num_steps,
            device=device,
            description="probe teacher",
            observer=Observer(folder=log_folder),
        )
    return head.eval()


def score_targets(head: nn.Module, targets: LabelledTargets, device: torch.device) -> Scores:
    """Count every pair of every frame by (label, prediction of the head)."""
    class_names = tuple(targets.dataset.class_names)
    frames = [stored.frame for stored in targets.frames]
    scene_of_frame, scenes = scenes_of(frames)
    confusions = np.zeros((len(scenes), len(class_names), len(class_names)), dtype=np.int64)
    with torch.inference_mode(), progress(len(frames), "score", "frame") as bar:
        for number in range(len(frames)):
            features, labels = targets.read(number)
            predictions = head(features.to(device)).argmax(dim=1).cpu().numpy()
            confusions[scene_of_frame[number]] += confusion_matrix(labels.numpy(), predictions, len(class_names))
            bar.update()
    if not confusions.any():
        raise unlabelled(targets.dataset)
    return Scores(class_names, scenes, confusions, len(frames), frames_digest([frame.token for frame in frames]))


def _stored_frames(store: FeatureStore, teacher: str, dataset: Dataset) -> list[StoredFrame]:
    """The frames of the dataset's split that have targets, in the dataset's order."""
    views, rows_of_frame = store.views, {}
    rows = store.rows_with_targets(teacher)
    tokens, names = views["token"].to_pylist(), views["dataset"].to_pylist()
    for row in rows.tolist():
        if names[row] == dataset.name:
            rows_of_frame.setdefault(tokens[row], []).append(row)
    found = [
        StoredFrame(frame, tuple(rows_of_frame[frame.token]))
        for frame in dataset.frames
        if frame.token in rows_of_frame
    ]
    if not found:
        raise StoreError(
            f"no targets of {teacher} for split {dataset.split} of {dataset.name}",
            where=store.path,
            fix=f"Run 'scalr extract --teacher {teacher} --split {dataset.split}', and pass its store.",
        )
    return found
