"""Learning-rate schedules, as fractions of the peak."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, warmup_steps: float, total_steps: int, least: float) -> float:
    """ScaLR's: linear warm-up from zero, then cosine decay to the fraction `least` of the peak."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return least + 0.5 * (1 - least) * (1 + math.cos(math.pi * min(1.0, progress)))


def cosine_of_epochs(epoch: int, epochs: int) -> float:
    """SLidR's: cosine decay to zero that changes only between epochs, without a warm-up.

    Equals torch's CosineAnnealingLR with T_max = `epochs`, stepped once per epoch: the last epoch is just above zero.
    """
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def reciprocal_sqrt(
    step: int, *, warmup_steps: float, total_steps: int, timescale_steps: float, cooldown_steps: float
) -> float:
    """ScaLR+'s: linear warm-up, decay by the reciprocal square root of the steps since, linear cool-down to zero.

    As in the official code (LinWarmup_ReciprocalSqrt_LinCoolDown), the cool-down begins at the value of a decay that
    also counts the warm-up's steps, slightly below the value before it. The last step has a factor of zero.
    """
    cooldown_start = total_steps - cooldown_steps
    if step <= warmup_steps and warmup_steps > 0:
        return step / warmup_steps
    if step <= cooldown_start:
        return 1 / math.sqrt(1 + (step - warmup_steps) / timescale_steps)
    start = 1 / math.sqrt(1 + cooldown_start / timescale_steps)
    left = total_steps - step - 1
    return start * max(0.0, left / max(1.0, cooldown_steps - 1))
