"""A short training to be killed, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill
from scalr.errors import ScalrError

EPOCHS = 14
# Stochastic depth draws random numbers on the device in every step.
RECIPE = ("student.width=8", "student.depth=3", "student.stochastic_depth=0.2", f"training.epochs={EPOCHS}",
          "training.batch_size=2", "training.warmup_steps=5", "inputs.num_neighbours=4")  # fmt: skip


def distill_in_child(store: Path, out: Path, checkpoint_minutes: float) -> None:
    torch.set_num_threads(1)
    try:
        distill(
            DistillConfig(
                caches=(store,),
                out=out,
                recipe=load_recipe("scalr_wi256", RECIPE),
                device="cpu",
                resume=True,
                checkpoint_minutes=checkpoint_minutes,
            )
        )
    except ScalrError as error:
        sys.exit(error.exit_code)
