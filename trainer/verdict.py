"""Which candidate a run hands back, and whether it has helped, told without labels.

A candidate that agrees with none of the references has drifted: whatever it predicts, it is not what the source network
knew. Such candidates are left out. The others form an ensemble, and the one with the highest trust is chosen, the mean
of its agreement with that ensemble, its consistency and its information. The verdict compares the latter two with those
of the untouched network; agreement would not do, as most of the ensemble are relatives of the chosen one.
docs/label_free.md tells how the rule was found, and how often it is right.
"""
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer import label_free

UNTOUCHED = "untouched"
REFERENCES = (UNTOUCHED, "adapted statistics", "half-adapted statistics", "mixed statistics")
KEEP, DOUBTFUL, REJECT = "keep", "doubtful", "reject"
LEVELS = {KEEP: 1, DOUBTFUL: 0, REJECT: -1}
NEAR = 0.45  # smallest agreement with the nearest reference of a candidate that has not drifted
MARGIN = 0.02  # change of the mean of the witnesses from which on it means anything
VANISHED, NOTICED = 0.1, 0.002  # a class has vanished if less than this part is left of a share of at least that
CHOSEN, FILE = "_chosen", "_verdict.json"  # endings of the files that a stage leaves beside its checkpoint
_WITNESSES = ("consistency", "information")

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """The choice among candidates.

    verdict: keep, doubtful or reject. chosen: name of the candidate that is handed back, after reject the untouched
    network. why: one line. last: name of the last state. collapsed: whether that one has (`scored`). candidates: what
    is known of each. ranking: names, the best first.
    """

    verdict: str
    chosen: str
    why: str
    last: str
    collapsed: bool
    candidates: Records
    ranking: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without the ranking."""
        return {"verdict": self.verdict, "chosen": self.chosen, "why": self.why, "last": self.last,
                "collapsed": self.collapsed, "candidates": self.candidates}


def decide(records: Records, predictions: list[np.ndarray], select_by: str) -> Verdict:
    """The verdict on candidates.

    records: of each `name`, `step`, `kept` (whether its weights are there), `trained` (whether it is the network that
    is trained, as it stood), `histogram` (share of each class) and `scores`, None where they are not finite.
    predictions: of each, uint8 [n, C, h, w]. select_by: `trust`, another score, `last`, or `miou`, which has to be
    among the scores; the untouched network is the first record.
    """
    candidates = scored(records, predictions)
    by_name = {c["name"]: c for c in candidates}
    last = [c["name"] for c in candidates if c["trained"]][-1:] or [UNTOUCHED]
    sign = -1 if select_by in label_free.LOWER_IS_BETTER else 1
    def worth(candidate):
        return sign * candidate["scores"][select_by]
    if select_by == "last":
        ranking = last
    else:
        usable = [c for c in candidates if c["kept"] and c["scores"][select_by] is not None
                  and (select_by == "miou" or not c["drifted"])]
        ranking = [c["name"] for c in sorted(usable, key=worth, reverse=True)]
    best, collapsed = by_name[ranking[0]], by_name[last[0]]["collapsed"]
    verdict, why = _compared(best, by_name[UNTOUCHED], select_by == "miou")
    if collapsed:
        why += (f"; the last state has collapsed: it agrees with no reference ({_nearest(by_name[last[0]])}), and "
                f"{by_name[last[0]]['lost']} classes have vanished")
    return Verdict(verdict, UNTOUCHED if verdict == REJECT else best["name"], why, last[0], collapsed, candidates,
                   ranking)


def _compared(best, untouched, by_labels):
    """(verdict, why): a candidate beside the untouched network, by the mIoU or by the witnesses."""
    if best is untouched:
        return REJECT, "no candidate is held to be better than the untouched network"
    if best["drifted"] and not by_labels:
        return REJECT, f"{best['name']} agrees with no reference ({_nearest(best)})"
    values = {name: (untouched["scores"][name] or 0.0, best["scores"][name])
              for name in (("miou",) if by_labels else _WITNESSES)}
    told = ", ".join(f"{name} {before:.3f} -> {after:.3f}" for name, (before, after) in values.items())
    against = f"{best['name']}, the best of the others: {told}"  # it is not the chosen one then
    change = _change(best, untouched, values)
    if change > (0 if by_labels else MARGIN):
        return KEEP, told
    if by_labels or change < -MARGIN:
        return REJECT, against
    return DOUBTFUL, f"{told}: hardly a difference; look at its predictions before you use it"


def _change(candidate, untouched, names=_WITNESSES):
    """Mean change of some scores against the untouched network."""
    return sum(candidate["scores"][name] - (untouched["scores"][name] or 0.0) for name in names) / len(names)


def _nearest(candidate):
    return f"nearest {candidate['scores']['nearest']:.2f}, a sound one has {NEAR} or more"


def scored(records: Records, predictions: list[np.ndarray]) -> Records:
    """The records with the scores that take other networks, `trust`, `agreement` and `nearest`, whether they have
    `drifted`, the number of classes that they have `lost`, and whether they have `collapsed`: drifted, and two classes
    are lost or the witnesses do not speak for them."""
    references = [i for i, r in enumerate(records) if r["name"] in REFERENCES]
    to_references = label_free.agreements(predictions, [[i] for i in references])
    nearest = [max([row[i] for row, r in zip(to_references, references) if r != i], default=1.0)
               for i in range(len(records))]
    finite = [r["scores"]["consistency"] is not None for r in records]
    drifted = [not fine or near < NEAR and i not in references
               for i, (near, fine) in enumerate(zip(nearest, finite))]
    members = [i for i, out in enumerate(drifted) if not out] or [0]
    agreement, = label_free.agreements(predictions, [members])
    known = [records[i] for i in references]
    found = [{**r, "drifted": out, "lost": len(lost(known, r)),
              "scores": {"trust": (a + sum(r["scores"][name] for name in _WITNESSES)) / 3 if fine else None,
                         "agreement": a, "nearest": near, **r["scores"]}}
             for r, a, near, out, fine in zip(records, agreement, nearest, drifted, finite)]
    for c, fine in zip(found, finite):
        c["collapsed"] = c["drifted"] and (not fine or c["lost"] >= 2 or _change(c, found[0]) <= MARGIN)
    return found


def lost(references: Records, state: dict[str, Any]) -> list[tuple[int, float, float]]:
    """The classes that have vanished from a state's predictions: (class, share before, share now). The share before is
    the smallest among the references, so that a class that these agree on counts."""
    before = np.min([r["histogram"] for r in references], axis=0)
    return [(c, float(b), n) for c, (b, n) in enumerate(zip(before, state["histogram"]))
            if b >= NOTICED and n < VANISHED * b]


def table(verdict: Verdict) -> str:
    """The candidates with their scores as text and the verdict. The chosen one is marked *, drifted ones !."""
    heads = list(dict.fromkeys(name for c in verdict.candidates for name in c["scores"]))
    width = max(len(c["name"]) for c in verdict.candidates)
    lines = [" " * (width + 2) + "".join(head.rjust(12) for head in (*heads, "lost"))]
    for c in verdict.candidates:
        mark = "*" if c["name"] == verdict.chosen else "!" if c["drifted"] else " "
        cells = ["-" if (v := c["scores"].get(head)) is None else f"{v:.3f}" for head in heads]
        lines.append(f"{mark} {c['name']:{width}}" + "".join(cell.rjust(12) for cell in (*cells, str(c["lost"]))))
    return "\n".join([*lines, f"verdict: {verdict.verdict}, chosen: {verdict.chosen} ({verdict.why})"])


def beside(checkpoint: str) -> dict[str, Any] | None:
    """The verdict (`Verdict.as_dict`) of the stage that wrote a checkpoint, `<stage>.pth` or `<stage>_chosen.pth`; None
    if none lies beside it."""
    path = Path(checkpoint.partition("#")[0])
    file = path.with_name(path.stem.removesuffix(CHOSEN) + FILE)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if {"verdict", "chosen", "last"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def start_remark(init_weight: str | None) -> list[str]:
    """A line for the log if a run starts from the last state of a stage that has chosen another one."""
    found = beside(init_weight) if init_weight else None
    if found is None or Path(init_weight).stem.endswith(CHOSEN) or found["last"] == found["chosen"]:
        return []
    path = Path(init_weight)
    better = path.with_name(f"{path.stem}{CHOSEN}{'.pth' if path.suffix else ''}")  # without: a model folder
    return [f"note: init_weight: that stage's verdict was {found['verdict']}, and it chose {found['chosen']!r}: "
            f"init_weight={better} starts from that one"]
