"""How well label-free scores and rules choose among the candidates of finished runs, by the candidates' true mIoU."""
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.label_free_run import TRUTH, candidates_of, predictions_of
from trainer import label_free, verdict
from trainer.verdict import KEEP

UNTOUCHED = "untouched"
MARGIN, COLLAPSE = 0.5, 5.0  # mIoU points: a difference that counts; a loss that is a collapse
PRESENT, GONE, CLASSES_LOST = 5.0, 1.0, 2  # IoU from and below which a class is there and gone; this many: a collapse
RESAMPLES = 1000


@dataclass(frozen=True)
class Candidate:
    """scores: label-free, None where not finite. histogram: share of each class. miou, iou: true, in percent.
    predictions: file of uint8 [n, C, h, w], probabilities x 255. record: as candidates.json has it."""

    name: str
    step: int
    scores: dict[str, float | None]
    histogram: list[float]
    miou: float
    iou: dict[str, float | None]
    predictions: Path
    record: dict


@dataclass(frozen=True)
class RunRecord:
    """A finished run. group: runs of one group share target frames. last: name of the last state."""

    pair: str
    group: str
    note: str
    candidates: tuple[Candidate, ...]
    last: str

    def __getitem__(self, name: str) -> Candidate:
        return next(c for c in self.candidates if c.name == name)

    def predictions(self) -> list[np.ndarray]:
        """Of each candidate, uint8 [n, C, h, w], as memory maps."""
        return [np.load(c.predictions, mmap_mode="r") for c in self.candidates]


Decision = tuple[str, str, bool]  # name of the chosen candidate, verdict, whether the last state has collapsed
Rule = Callable[[RunRecord], Decision]
Scorer = Callable[[RunRecord], list[float]]  # a number for each candidate, higher where it is held to be better


@dataclass(frozen=True)
class Outcome:
    """What a rule's decision on a run was worth. regret: mIoU of the best candidate minus that of the chosen one. gain,
    last_gain: mIoU of the chosen and of the last state minus that of the untouched network. collapsed: truly, the
    last state. flagged: so says the rule."""

    group: str
    pair: str
    note: str
    chosen: str
    verdict: str
    flagged: bool
    regret: float
    gain: float
    last_gain: float
    collapsed: bool


def load(work: Path) -> list[RunRecord]:
    """The finished runs below `work`, by name."""
    found = []
    for file in sorted(work.glob("runs/*/*/run.json")):
        known = json.loads(file.read_text())
        if known.get("miou") is not None:
            found.append(read_run(next(file.parent.glob("*.candidates")), known["pair"], known["group"]))
    return found


def read_run(folder: Path, pair: str, group: str) -> RunRecord:
    """folder: `<stage>.candidates` of a run."""
    truth = json.loads((folder / TRUTH).read_text())
    def candidate(record):
        true = truth[record["name"]]
        return Candidate(record["name"], record["step"], {**record["scores"], "agreement": true["agreement"]},
                         record["histogram"], true["miou"], true["iou"], predictions_of(folder, record), record)
    candidates = tuple(map(candidate, candidates_of(folder)))
    last = f"step {max(c.step for c in candidates)}"
    return RunRecord(pair, group, folder.parent.name, candidates, last)


# ---- scores and rules ------------------------------------------------------------------------------------------------

def stored(score: str) -> Scorer:
    """A score that the run has measured. agreement: with the ensemble of all candidates."""
    sign = -1 if score in label_free.LOWER_IS_BETTER else 1
    def scorer(run):
        values = [c.scores.get(score) for c in run.candidates]
        return [-np.inf if v is None or not np.isfinite(v) else sign * v for v in values]
    return scorer


def agreement_with_better_half(run: RunRecord) -> list[float]:
    """Agreement with the ensemble of the half of the candidates that has the higher InfoMax."""
    sure = stored("information")(run)
    members = sorted(range(len(sure)), key=lambda i: -sure[i])[:-(-len(sure) // 2)]
    return label_free.agreements(run.predictions(), [members])[0]


def own_scores(run: RunRecord) -> list[dict]:
    """What each candidate's record has, without the scores that take other candidates."""
    return [{**c.record, "scores": {name: c.record["scores"][name] for name in label_free.OWN_SCORES}}
            for c in run.candidates]


def trust(run: RunRecord) -> list[float]:
    """The project's score; drifted candidates are the worst."""
    return [-np.inf if c["drifted"] else c["scores"]["trust"]
            for c in verdict.scored(own_scores(run), run.predictions())]


def product(run: RunRecord) -> Decision:
    """The rule of the project."""
    found = verdict.decide(own_scores(run), run.predictions(), "trust")
    return found.chosen, found.verdict, found.collapsed


def always(name: str) -> Rule:
    """Always keep the candidate of a name; "last": the last state. Where there is none, the untouched network."""
    def rule(run):
        wanted = run.last if name == "last" else name
        return wanted if any(c.name == wanted for c in run.candidates) else UNTOUCHED, KEEP, False
    return rule


SCORERS: dict[str, Scorer] = {"trust": trust, **{name: stored(name) for name in ("agreement", *label_free.OWN_SCORES)},
                              "agreement, InfoMax half": agreement_with_better_half}
RULES: dict[str, Rule] = {"product": product,
                          **{name: always(name) for name in ("last", "adapted statistics", "half-adapted statistics")}}


# ---- what came of it -------------------------------------------------------------------------------------------------

def collapsed(state: Candidate, untouched: Candidate) -> bool:
    """Whether a state has lost over COLLAPSE points, or CLASSES_LOST classes, against the untouched network."""
    lost = [name for name, before in untouched.iou.items()
            if before is not None and before >= PRESENT and (state.iou[name] or 0.0) < GONE]
    return untouched.miou - state.miou > COLLAPSE or len(lost) >= CLASSES_LOST


def outcome(run: RunRecord, decision: Decision) -> Outcome:
    name, said, flagged = decision
    start, chosen, last = run[UNTOUCHED], run[name], run[run.last]
    return Outcome(run.group, run.pair, run.note, name, said, flagged,
                   max(c.miou for c in run.candidates) - chosen.miou, chosen.miou - start.miou,
                   last.miou - start.miou, collapsed(last, start))


def evaluate_rule(records: list[RunRecord], rule: Rule) -> list[Outcome]:
    """What a rule decides on each run, and what that was worth."""
    return [outcome(run, rule(run)) for run in records]


def share(of: list[Outcome], condition: Callable[[Outcome], bool]) -> float | None:
    """In percent; None of nothing."""
    return 100 * sum(map(condition, of)) / len(of) if of else None


def improved(o: Outcome) -> bool:
    return max(o.gain, o.last_gain) > MARGIN


# Of the outcomes of a rule: regret and gain in mIoU points, the rest in percent of the runs in question.
MEASURES: dict[str, Callable[[list[Outcome]], float | None]] = {
    "median regret": lambda of: statistics.median(o.regret for o in of),
    "mean regret": lambda of: statistics.fmean(o.regret for o in of),
    "mean gain": lambda of: statistics.fmean(o.gain for o in of),
    "worst gain": lambda of: min(o.gain for o in of),
    "worse": lambda of: share(of, lambda o: o.gain < -MARGIN),
    "worse, unsaid": lambda of: share(of, lambda o: o.gain < -MARGIN and o.verdict == KEEP),
    "collapse named": lambda of: share([o for o in of if o.collapsed], lambda o: o.flagged or o.verdict != KEEP),
    "false alarm": lambda of: share([o for o in of if improved(o)], lambda o: o.verdict != KEEP),
    "false collapse": lambda of: share([o for o in of if o.last_gain > MARGIN and not o.collapsed],
                                       lambda o: o.flagged),
}


def ranks(values: list[float]) -> np.ndarray:
    """Ranks from 0, float [n]; equal values have the mean of their ranks."""
    values = np.asarray(values, float)
    less, equal = (values[None] < values[:, None]).sum(1), (values[None] == values[:, None]).sum(1)
    return less + (equal - 1) / 2


def spearman(a: list[float], b: list[float]) -> float | None:
    """Rank correlation in -1..1; None where either side is constant."""
    x, y = (r - r.mean() for r in (ranks(a), ranks(b)))
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else None


def interval(items: list[tuple[str, object]], statistic: Callable[[list], float | None]) -> tuple[float, float] | None:
    """90% bootstrap interval of a statistic of items (group, item): groups are drawn, never items. None if no draw has
    a value. One group gives no interval but its value twice."""
    names = sorted({group for group, _ in items})
    members = {name: [item for group, item in items if group == name] for name in names}
    rng, found = np.random.default_rng(0), []
    for _ in range(RESAMPLES if names else 0):
        drawn = [item for i in rng.integers(len(names), size=len(names)) for item in members[names[i]]]
        if (value := statistic(drawn)) is not None:
            found.append(value)
    return tuple(float(v) for v in np.percentile(found, [5, 95])) if found else None


def halves(groups: list[str]) -> dict[str, list[str]]:
    """The groups in order, alternately: on which rules are chosen, and on which they are reported."""
    names = sorted(set(groups))
    return {"choosing": names[::2], "reporting": names[1::2]}


def summary(records: list[RunRecord]) -> dict[str, dict]:
    """Rule -> {measure: {"value", "interval"}, "outcomes": of each run}. A score's rule keeps the candidate that it
    ranks first, the first of equals; its rank correlation with the true mIoU is the mean over the runs."""
    def measured(items, statistic):
        return {"value": statistic([item for _, item in items]), "interval": interval(items, statistic)}
    def of_rule(outcomes):
        items = [(o.group, o) for o in outcomes]
        return {**{name: measured(items, f) for name, f in MEASURES.items()}, "outcomes": [asdict(o) for o in outcomes]}
    found = {name: of_rule(evaluate_rule(records, rule)) for name, rule in RULES.items()}
    for name, scorer in SCORERS.items():
        values = [scorer(run) for run in records]
        first = [run.candidates[int(np.argmax(v))].name for run, v in zip(records, values)]
        ranked = [(run.group, spearman(v, [c.miou for c in run.candidates])) for run, v in zip(records, values)]
        found[name] = {"rank correlation": measured([item for item in ranked if item[1] is not None], mean_or_none),
                       **of_rule([outcome(run, (name, KEEP, False)) for run, name in zip(records, first)])}
    return found


def mean_or_none(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None
