"""Schedules as pure functions of the step or round, so that resuming a run needs no stored state of them."""


def poly_lr(base_lr: float, step: int, total_steps: int, power: float) -> float:
    """`base_lr * (1 - t/T)^power` for step t in 0..T; steps past T get 0 (a negative base would turn complex)."""
    return base_lr * (1 - min(step, total_steps) / total_steps) ** power


def round_lr(base_lr: float, round_index: int, decay: float) -> float:
    """Base learning rate of a round: `base_lr / decay^r`, r from 0 (released: decay = sqrt 2)."""
    return base_lr / decay ** round_index


def round_portion(cb_prop: float, portion_step: float, round_index: int) -> float:
    """Portion alpha of a round, the share of each class's pixels to select: `cb_prop + portion_step * r`, at most 1."""
    return min(1.0, cb_prop + portion_step * round_index)
