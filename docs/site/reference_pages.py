"""Pages of the Python API, from docstrings."""

from __future__ import annotations

import re
from pathlib import Path

import scalr

PUBLIC = Path(__file__).parents[1] / "python.md"  # says what is public of a store, which has more methods

FOLDER = "api"
# By title: what a page is about, and the names on it.
PAGES = {
    "scalr": (
        "The names that `import scalr` gives.",
        [f"scalr.{name}" for name in scalr.__all__] + ["scalr.extract.store.StoredView"],
    ),
    "Extraction": (
        "What `scalr extract`, `check`, `inspect` and `verify` call.",
        [
            "scalr.extract.config.ExtractConfig",
            "scalr.extract.run.extract",
            "scalr.extract.run.estimate_extraction",
            "scalr.extract.check.check",
            "scalr.extract.store.inspect.inspect_store",
            "scalr.extract.verification.VerifyConfig",
            "scalr.extract.verification.verify",
        ],
    ),
    "Datasets": (
        "Reading a dataset, and what a dataset reader of your own gives.",
        ["scalr.extract.datasets.open_dataset", "scalr.extract.datasets.frame"],
    ),
    "Distillation": (
        "What `scalr distill` and `scalr convert` call.",
        [
            "scalr.distill.recipe.load_recipe",
            "scalr.distill.run.DistillConfig",
            "scalr.distill.run.distill",
            "scalr.distill.convert.convert",
            "scalr.distill.backbones.backbone",
        ],
    ),
    "Prediction": (
        "What `scalr predict` calls.",
        ["scalr.evaluate.predict.PredictConfig", "scalr.evaluate.predict.predict"],
    ),
    "Evaluation": (
        "What the commands of `scalr evaluate` call.",
        [
            "scalr.evaluate.probe.ProbeConfig",
            "scalr.evaluate.probe.probe",
            "scalr.evaluate.finetune.FinetuneConfig",
            "scalr.evaluate.finetune.finetune",
            "scalr.evaluate.similarity.SimilarityConfig",
            "scalr.evaluate.similarity.similarity_maps",
            "scalr.evaluate.scores.Scores",
        ],
    ),
}


def navigation() -> list[dict[str, str]]:
    """The pages in their order."""
    return [{title: _place(title)} for title in PAGES]


def pages() -> dict[str, str]:
    """Markdown by its place in the site."""
    return {
        _place(title): "\n\n".join([f"# {title}", text, *map(_docstrings, names), ""])
        for title, (text, names) in PAGES.items()
    }


def _docstrings(name: str) -> str:
    """What mkdocstrings replaces by the docstrings of a name; of a store, by those of its public members."""
    if name != "scalr.FeatureStore":
        return f"::: {name}"
    table = PUBLIC.read_text().partition("method of `FeatureStore`")[2].partition("\n\n")[0]
    members = re.findall(r"^\| `(\w+)", table, re.MULTILINE)
    return f"::: {name}\n    options: {{ members: [{', '.join(members)}] }}"


def _place(title: str) -> str:
    return f"{FOLDER}/{title.lower()}.md"
