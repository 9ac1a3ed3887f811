"""Verdicts: two codes' results for one input, and what the fidelity notes say of the first."""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

AGREES, DOCUMENTED, DISAGREES = "agrees", "differs as documented", "DISAGREES"


@dataclass(frozen=True)
class Row:
    """One comparison. Results are numbers, arrays, tensors or short texts.

    theirs, ours: the two codes' results for the same input. documented: None where they are said to agree, else the
    result that the fidelity notes' words give for theirs, worked out plainly. tolerance: largest difference, relative
    to the largest number of theirs, up to which two results are equal.
    """

    what: str
    given: str
    theirs: object
    ours: object
    tolerance: float = 0.0
    documented: object = None

    @property
    def verdict(self) -> str:
        """AGREES; DOCUMENTED: theirs is what the notes say and ours is not; DISAGREES: neither."""
        same = difference(self.theirs, self.ours)[1] <= self.tolerance
        if self.documented is None:
            return AGREES if same else DISAGREES
        as_written = difference(self.theirs, self.documented)[1] <= self.tolerance
        return DOCUMENTED if as_written and not same else DISAGREES


def difference(first, second) -> tuple[float, float]:
    """Largest absolute difference of two results, and the same relative to the largest number of the first. Infinite
    where there is nothing to subtract: texts that differ, other shapes, no numbers, NaN in one of them alone."""
    if isinstance(first, str) or isinstance(second, str):
        same = isinstance(first, str) and isinstance(second, str) and first == second
        return (0.0, 0.0) if same else (np.inf, np.inf)
    first, second = _numbers(first), _numbers(second)
    if first.shape != second.shape or not first.size or (np.isnan(first) != np.isnan(second)).any():
        return np.inf, np.inf
    known = ~np.isnan(first)
    with np.errstate(invalid="ignore"):  # of infinities, NaN comes out, and NaN is within no tolerance
        absolute = np.abs(first[known] - second[known]).max(initial=0.0)
        return absolute, absolute / (np.abs(first[known]).max(initial=0.0) or 1.0)


def outcome(call: Callable) -> str:
    """What becomes of a call: the name of the error it raises, or `runs`."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "runs"


def table(rows: list[Row]) -> str:
    """The rows as markdown."""
    lines = ["| what | on | difference | relative | verdict |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        absolute, relative = (f"{d:.2g}" if np.isfinite(d) else "-" for d in difference(row.theirs, row.ours))
        if isinstance(row.theirs, str):
            absolute = row.theirs if row.theirs == row.ours else f"{row.theirs} / {row.ours}"
        lines.append(f"| {row.what} | {row.given} | {absolute} | {relative} | {row.verdict} |")
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    """How many rows have which verdict."""
    verdicts = [row.verdict for row in rows]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in (AGREES, DOCUMENTED, DISAGREES))


def _numbers(result) -> np.ndarray:
    return np.asarray(result.detach().cpu() if hasattr(result, "detach") else result, np.float64)
