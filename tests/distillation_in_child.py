"""A short training to be killed, in a process of its own."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch

from moments import Meeting, passing_by_at_calls
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill
from scalr.distill.training import _Trainer
from scalr.errors import ScalrError

Moments = Literal["steps", "changes"]
EPOCHS = 6
# Stochastic depth draws random numbers on the device in every step.
RECIPE = ("student.width=8", "student.depth=3", "student.stochastic_depth=0.2", f"training.epochs={EPOCHS}",
          "training.batch_size=2", "training.warmup_steps=5", "inputs.num_neighbours=4")  # fmt: skip


def distill_in_child(store: Path, out: Path, checkpoint_minutes: float, moments: Moments, meeting: Meeting) -> None:
    """A moment is each of its steps, or each change of its files."""
    torch.set_num_threads(1)
    if moments == "changes":
        meeting.at_changes_below(out)
    config = DistillConfig(
        caches=(store,),
        out=out,
        recipe=load_recipe("scalr_wi256", RECIPE),
        device="cpu",
        resume=True,
        checkpoint_minutes=checkpoint_minutes,
    )
    try:
        with passing_by_at_calls(_Trainer, "_make_step", meeting) if moments == "steps" else nullcontext():
            distill(config)
    except ScalrError as error:
        sys.exit(error.exit_code)
    out.with_suffix(".moments").write_text(str(meeting.passed))
