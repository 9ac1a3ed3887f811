"""Which candidate a run hands back, and whether it helped, told without labels."""
import json
from dataclasses import dataclass
from pathlib import Path
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

    verdict: keep, doubtful or reject. chosen: name of the candidate that is handed back. why: one line. candidates:
    what is known of each. ranking: names, the best first.
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


def lost(references: list[dict[str, Any]], state: dict[str, Any]) -> list[tuple[int, float, float]]:
    """The classes that have vanished from a state's predictions: (class, share before, share now). The share before is
    the smallest among the references, so that a class that these agree on counts."""
    before = np.min([r["histogram"] for r in references], axis=0)
    return [(c, float(b), n) for c, (b, n) in enumerate(zip(before, state["histogram"]))
            if b >= NOTICED and n < VANISHED * b]


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


CHOSEN, FILE = "_chosen", "_verdict.json"  # endings of the files that a stage leaves beside its checkpoint


def beside(checkpoint: str) -> dict[str, Any] | None:
    """The verdict (`Verdict.as_dict`) of the stage that wrote a checkpoint, `<stage>.pth` or `<stage>_chosen.pth`; None
    if none lies beside it."""
    path = Path(checkpoint.partition("#")[0])
    file = path.with_name(path.stem.removesuffix(CHOSEN) + FILE)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if {"verdict", "chosen"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def start_remark(init_weight: str | None) -> list[str]:
    """A line for the log if a run starts from the last state of a stage that has chosen another one."""
    found = beside(init_weight) if init_weight else None
    if found is None or Path(init_weight).stem.endswith(CHOSEN) or found.get("last") == found["chosen"]:
        return []
    better = Path(init_weight).with_name(f"{Path(init_weight).stem}{CHOSEN}.pth")
    return [f"note: init_weight: that stage's verdict was {found['verdict']}, and it chose {found['chosen']!r}: "
            f"init_weight={better} starts from that one"]
