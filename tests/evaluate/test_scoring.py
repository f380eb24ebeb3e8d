from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from in_children import scores_of_a_share, together
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import save_student
from scalr.distill.student import Student
from scalr.errors import DatasetError, ScalrError, StudentError
from scalr.evaluate import scoring
from scalr.evaluate.model import load_model, save_model, with_class_head
from scalr.evaluate.score import ScoreConfig, score_model
from scalr.evaluate.scoring import scenes_of, score
from scalr.evaluate.submission import writer_for
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.frame import Frame
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.nuscenes_tables import FIELDS
from scalr.extract.datasets.semantic_kitti import LABELS as KITTI_LABELS

CPU = torch.device("cpu")


def random_model(num_classes: int, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    student = Student(WaffleIronConfig(width=8, depth=3, out_channels=4))
    model = with_class_head(student, num_classes, student.input_config).eval()
    torch.nn.init.normal_(model.classif[1].weight)
    return model


def a_frame(scene: str, number: int) -> Frame:
    return Frame(dataset="d", scene=scene, token=f"{scene}/{number}", timestamp=number, scan="s", labels=None, views=())


def test_long_sequences_are_cut_into_scenes():
    frames = [a_frame("a", n) for n in range(3)] + [a_frame("b", n) for n in range(205)]
    index, names = scenes_of(frames)
    assert names == ("a", "b", "b+100", "b+200")
    assert index == [0] * 3 + [1] * 100 + [2] * 100 + [3] * 5


def test_one_and_two_processes_count_an_odd_split_the_same(tmp_path, simulated, children):
    """Every frame once: torch's DistributedSampler would repeat one of the three."""
    root = simulated("semantic_kitti")
    model = random_model(19)
    save_model(model, tmp_path / "model.safetensors", KITTI_LABELS.class_names, {})
    alone = score(model, _first_three(open_dataset("semantic_kitti", root, "00,08")), CPU)
    assert alone.num_frames == 3
    assert together(children, scores_of_a_share, tmp_path / "model.safetensors", root, tmp_path) == [0, 0]
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"{rank}.npy"), alone.confusions)


def _first_three(dataset):
    dataset.frames = list(dataset.frames)[:3]
    return dataset


def test_workers_prepare_the_same_scans(simulated):
    dataset, model = open_dataset("nuscenes", simulated("nuscenes"), "val"), random_model(16)
    np.testing.assert_array_equal(
        score(model, dataset, CPU, workers=1).confusions, score(model, dataset, CPU).confusions
    )


@pytest.mark.parametrize("token", ["../../x", "/tmp/x", "a/../../../../x"])
def test_a_token_never_leads_out_of_the_folder_of_predictions(tmp_path, token):
    class NuScenesOfSomebody:
        name, class_names, split, tables = "nuscenes", (), "val", tmp_path / "v1.0-trainval"

    NuScenesOfSomebody.tables.mkdir()
    fields = dict.fromkeys(FIELDS["sample_data"], "")
    record = fields | {"filename": "scan.bin", "token": token, "is_key_frame": True}
    (NuScenesOfSomebody.tables / "sample_data.json").write_text(json.dumps([record]))
    keep = writer_for(NuScenesOfSomebody(), tmp_path / "a/b/submission")
    with pytest.raises(ScalrError, match=rf"the name '{token}_.* in the dataset's tables leads out of the folder"):
        keep(replace(a_frame("scene", 0), scan="scan.bin"), np.zeros(1, np.uint8))
    assert not list(tmp_path.rglob("*_lidarseg.bin"))


def test_nor_does_a_scene(tmp_path):
    class KittiOfSomebody:
        name, class_names, label_map = "semantic_kitti", (), KITTI_LABELS

    keep = writer_for(KittiOfSomebody(), tmp_path / "submission")
    with pytest.raises(ScalrError, match="in the dataset's tables leads out of the folder"):
        keep(a_frame("../..", 0), np.zeros(1, np.uint8))
    assert not list(tmp_path.rglob("*.label"))


def test_points_beyond_the_range_are_not_there(simulated):
    dataset = open_dataset("nuscenes", simulated("nuscenes"), "val")
    scans = [(dataset.read_points(frame), dataset.read_labels(frame)) for frame in dataset.frames]
    ranges = np.concatenate([np.linalg.norm(points[:, :3], axis=1) for points, _ in scans])
    labels = np.concatenate([labels for _, labels in scans])
    max_range_m = float(np.sort(ranges[(ranges > 15) & (labels != IGNORE_LABEL)])[0])  # of a point: it is not there
    near = ((ranges < max_range_m) & (labels != IGNORE_LABEL)).sum()
    scores = score(random_model(16), dataset, CPU, max_range_m=max_range_m)
    assert scores.confusion.sum() == near
    assert scores.confusion.sum() < score(random_model(16), dataset, CPU).confusion.sum()


def test_a_split_of_which_no_labelled_point_is_scored_is_said(simulated):
    dataset = open_dataset("nuscenes", simulated("nuscenes"), "val")
    with pytest.raises(DatasetError, match="no point of split val of nuscenes has a label of its 16 classes"):
        score(random_model(16), unlabelled_but_for_far_points(dataset), CPU, max_range_m=15)
    score(random_model(16), dataset, CPU, labelled=False)  # only predicted


def unlabelled_but_for_far_points(dataset):
    def read_labels(frame):
        far = np.linalg.norm(dataset.read_points(frame)[:, :3], axis=1) > 15
        return np.where(far, read(frame), IGNORE_LABEL).astype(np.uint8)

    changed = copy.copy(dataset)
    read = dataset.read_labels
    changed.read_labels = read_labels
    return changed


@pytest.fixture
def kitti_model(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(random_model(19), path, KITTI_LABELS.class_names, {"distillation": {"teachers": {}}})
    return path


def test_a_submission_scores_as_the_model_does(simulated, tmp_path, kitti_model):
    """Read back as labels of the dataset, the predictions give the same confusion matrix."""
    root = simulated("semantic_kitti")
    config = ScoreConfig(model=kitti_model, root=root, out=tmp_path / "out", dataset="semantic_kitti", predictions=True)
    scores = score_model(config)
    dataset = open_dataset("semantic_kitti", root, "val")
    confusion = np.zeros((19, 19), dtype=np.int64)
    for frame in dataset.frames:
        name = f"sequences/{frame.scene}/predictions/{frame.token.split('/')[1]}.label"
        raw = np.fromfile(tmp_path / "out/submission" / name, dtype=np.uint32)
        predictions, labels = KITTI_LABELS.train_ids(raw, name), dataset.read_labels(frame)
        for label, prediction in zip(labels[labels != IGNORE_LABEL], predictions[labels != IGNORE_LABEL], strict=True):
            confusion[label, prediction] += 1
    np.testing.assert_array_equal(confusion, scores.confusion)
    assert "IoU by class" in (tmp_path / "out/result.md").read_text()


def test_the_server_of_semantic_kitti_gets_its_own_ids():
    """learning_map_inv of the benchmark's semantic-kitti.yaml."""
    first = [ids[0] for ids in KITTI_LABELS.raw_ids.values()]
    assert first == [10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]


def test_a_nuscenes_submission_is_named_by_the_scan(simulated, tmp_path):
    root = simulated("nuscenes")
    path = tmp_path / "model.safetensors"
    dataset = open_dataset("nuscenes", root, "val")
    save_model(random_model(16), path, dataset.class_names, {})
    score_model(ScoreConfig(model=path, root=root, out=tmp_path / "out", predictions=True))
    for frame in dataset.frames:
        written = tmp_path / "out/submission/lidarseg/val" / frame.labels.rsplit("/", 1)[1]
        ids = np.fromfile(written, dtype=np.uint8)
        assert len(ids) == len(dataset.read_points(frame))
        assert 1 <= ids.min() <= ids.max() <= 16
    assert json.loads((tmp_path / "out/submission/val/submission.json").read_text())["meta"]["use_lidar"]


def test_a_split_without_labels_is_predicted_only(simulated, tmp_path, kitti_model):
    root = tmp_path / "world"
    shutil.copytree(simulated("semantic_kitti"), root)
    for labels in root.rglob("labels"):
        shutil.rmtree(labels)
    common = {"model": kitti_model, "root": root, "dataset": "semantic_kitti"}
    assert score_model(ScoreConfig(**common, out=tmp_path / "out", predictions=True)) is None
    assert len(list((tmp_path / "out/submission").rglob("*.label"))) == 2
    with pytest.raises(DatasetError, match="has no labels"):
        score_model(ScoreConfig(**common, out=tmp_path / "scored"))


def test_predictions_that_no_benchmark_takes_are_refused(tiny_dataset, tmp_path):
    tiny_dataset.class_names = ("left", "right", "behind")
    with pytest.raises(
        ScalrError,
        match=r"benchmarks take predictions of the dataset's own classes only\."
        " Leave out --classes",
    ):
        writer_for(tiny_dataset, tmp_path)
    tiny_dataset.name = "my_rig"
    with pytest.raises(ScalrError, match=r"no submission format is known for my_rig\. .*nuscenes, semantic_kitti"):
        writer_for(tiny_dataset, tmp_path)


def test_a_model_of_other_classes_is_refused(simulated, tmp_path, kitti_model):
    with pytest.raises(StudentError, match="the model predicts car, bicycle"):
        score_model(ScoreConfig(model=kitti_model, root=simulated("nuscenes"), out=tmp_path / "out"))
    save_student(Student(WaffleIronConfig(width=8, depth=3)), tmp_path / "student.safetensors", {})
    with pytest.raises(StudentError, match="the student has no head for classes"):
        load_model(tmp_path / "student.safetensors")


def test_a_finished_result_is_not_overwritten(simulated, tmp_path, kitti_model):
    config = ScoreConfig(
        model=kitti_model, root=simulated("semantic_kitti"), out=tmp_path / "out", dataset="semantic_kitti"
    )
    score_model(config)
    with pytest.raises(StudentError, match="a finished run is in this folder"):
        score_model(config)


def test_the_real_scan(real_data, tmp_path):
    """00/000000 of SemanticKITTI: every one of its 123,389 points is predicted, every labelled one counted."""
    root = real_data("semantickitti")
    dataset = open_dataset("semantic_kitti", root, "00")
    dataset.frames = dataset.frames[:1]
    model = random_model(19)
    predicted = []
    scores = scoring.score(model, dataset, CPU, keep=lambda frame, predictions: predicted.append(predictions))
    labels = dataset.read_labels(dataset.frames[0])
    assert [len(each) for each in predicted] == [len(labels)] == [123_389]
    counted = labels != IGNORE_LABEL
    assert scores.confusion.sum() == counted.sum()
    np.testing.assert_array_equal(scores.confusion.sum(axis=0), np.bincount(predicted[0][counted], minlength=19))
