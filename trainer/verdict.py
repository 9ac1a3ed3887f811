"""Which candidate a run hands back, and whether it helped, told without labels."""
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer import label_free

REFERENCES = ("untouched", "adapted statistics", "mixed statistics")
KEEP, DOUBTFUL, REJECT = "keep", "doubtful", "reject"
VANISHED = 0.1  # a class has vanished if less than this part of its share is left
NOTICED = 0.002  # smallest share of a class whose vanishing counts


@dataclass(frozen=True)
class Verdict:
    """The choice among candidates.

    verdict: keep, doubtful or reject. chosen: name of the candidate that is handed back. why: one line. candidates: what
    is known of each. ranking: names, the best first.
    """

    verdict: str
    chosen: str
    why: str
    candidates: list[dict[str, Any]]
    ranking: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"verdict": self.verdict, "chosen": self.chosen, "why": self.why, "candidates": self.candidates}


def decide(records: list[dict[str, Any]], predictions: list[np.ndarray], select_by: str) -> Verdict:
    """The verdict on candidates."""
    agreement = label_free.agreement(predictions, list(range(len(records))))
    candidates = [{**r, "scores": {"agreement": a, **r["scores"]}} for r, a in zip(records, agreement)]
    ranking = [c["name"] for c in sorted(candidates, key=lambda c: -c["scores"]["agreement"]) if c["kept"]]
    return Verdict(KEEP, ranking[0], "", candidates, ranking)


def table(verdict: Verdict) -> str:
    """The candidates with their scores as text, the chosen one marked, and the verdict."""
    heads = list(dict.fromkeys(name for c in verdict.candidates for name in c["scores"]))
    width = max(len(c["name"]) for c in verdict.candidates)
    lines = [" " * (width + 2) + "".join(head.rjust(13) for head in heads)]
    for c in verdict.candidates:
        cells = ["-" if (v := c["scores"].get(h)) is None else f"{v:.3f}" for h in heads]
        lines.append(("* " if c["name"] == verdict.chosen else "  ") + c["name"].ljust(width)
                     + "".join(cell.rjust(13) for cell in cells))
    return "\n".join([*lines, f"verdict: {verdict.verdict}" + (f" ({verdict.why})" if verdict.why else "")])
