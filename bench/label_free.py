"""How far label-free scores and the verdict can be trusted: many runs, good and ruinous, against the true mIoU.

    python -m bench.label_free [--work DIR] [--data DIR] [--plan toy data] [--list]

Toy pairs are drawn and trained (bench/label_free_pairs.py). Each file SEQUENCE--name.yml of --data is a pair of one's
own: a configuration with a trained `init_weight` and a labelled target. Every run keeps all its candidates; the labels
serve to score these afterwards and nothing else. Rules are chosen on half of the target sequences and reported on the
other half. Runs are processes of one thread. What has been done is kept: the same command goes on.
"""
import argparse
from pathlib import Path

from bench import label_free_pairs as pairs
from bench import label_free_rules as rules
from bench.methods import Runs
from bench.processes import Processes, markdown, write_json
from utils.cli import OneLineParser, guarded, leave, tolerant_output
from utils.errors import ConfigError

PLANS = ("toy", "data", "own")
WORDS = ("worker=0", "screen=False", "tensorboard=False", "resume=True", "val=False", "plabel_accuracy=False",
         "keep_candidates=True", "model_folder=False")
NOT_FINITE = "is not finite"  # in the error of a run whose numbers have overflown


class Adaptations(Processes):
    """The runs below the folder `work`. overrides: words for every run."""

    def __init__(self, work: Path, processes: int, overrides: list[str]):
        super().__init__(processes)
        self.work, self.overrides = work.resolve(), overrides

    def title(self, run):
        return f"{run.pair.name}, {run.note}"

    def folder(self, run):
        return self.work / "runs" / run.pair.name / run.note

    def command(self, run):
        return ["-m", "bench.label_free_run", "--config", str(run.pair.config), f"method={run.method}",
                f"note={run.note}", f"learning_rate={run.pair.rate * run.factor:.6g}", *WORDS,
                *(f"{room}={self.folder(run).parent}" for room in ("snapshot", "log", "plabel", "result")),
                *run.pair.words, *self.overrides, *run.words.split()]

    def figures(self, run):
        """{"miou": of the last state, "pair", "group"}."""
        record = rules.read_run(self.folder(run) / f"{run.method}.candidates", run.pair.name, run.pair.group)
        return {"miou": record[record.last].miou, "pair": run.pair.name, "group": run.pair.group}

    def failed(self, run, exit_code):
        """A run that training itself has ended, as it says on its own, is left out of the tables."""
        last = (self.folder(run) / "output.txt").read_text().strip().rpartition("\n")[2]
        return {"miou": None, "failed": last} if NOT_FINITE in last else super().failed(run, exit_code)


def cell(measured: dict | None, digits: int) -> str:
    """A value with its interval."""
    if measured is None or measured["value"] is None:
        return "-"
    low, high = measured["interval"]
    return f"{measured['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(found: dict[str, dict]) -> str:
    """Markdown: a row per rule; regret and gain in mIoU points, shares in %. found: `rules.summary`."""
    head = ["rank correlation", *rules.MEASURES]
    digits = {"rank correlation": 2, **dict.fromkeys(list(rules.MEASURES)[:4], 1)}
    return markdown([["rule", *head], *([name, *(cell(of_rule.get(m), digits.get(m, 0)) for m in head)]
                                        for name, of_rule in found.items())])


def runs_table(records: list[rules.RunRecord]) -> str:
    """Markdown: a row per run, with true mIoU in %, what the project's rule has chosen, and its verdict."""
    rows = [["pair", "run", "untouched", "adapted statistics", "last", "best", "chosen", "", "verdict"]]
    for run in records:
        name, verdict, collapsed = rules.product(run)
        values = [run["untouched"].miou, next((c.miou for c in run.candidates if c.name == "adapted statistics"), None),
                  run[run.last].miou, max(c.miou for c in run.candidates), run[name].miou]
        rows.append([run.pair, run.note, *("-" if v is None else f"{v:.1f}" for v in values), name,
                     verdict + (", last collapsed" if collapsed else "")])
    return markdown(rows)


def report(work: Path, runs: list[pairs.Adaptation]) -> tuple[str, dict]:
    """The tables of both halves as Markdown, and all figures."""
    wanted = {(run.pair.name, run.note) for run in runs}
    records = [r for r in rules.load(work) if (r.pair, r.note) in wanted]
    texts, found = [], {"runs": len(records), "left out": len(runs) - len(records)}
    for half, groups in rules.halves([run.pair.group for run in runs]).items():
        of_half = [r for r in records if r.group in groups]
        if not of_half:
            continue
        summary = rules.summary(of_half)
        states = sum(len(r.candidates) for r in of_half)
        texts.append(f"{half}: {len(of_half)} runs of {len({r.pair for r in of_half})} pairs, {states} candidates, "
                     f"target sequences {', '.join(groups)}\n\n{table(summary)}")
        found[half] = {"groups": groups, "rules": summary}
    return "\n\n".join([*texts, runs_table(records)] if texts else []), found


def bench(given) -> None:
    own = "own" in given.plan
    if own and (given.plan != ["own"] or not given.data):
        raise ConfigError("--plan: own stands alone, and takes --data DIR.")
    sources = Runs(given.work, given.configs, given.processes, [])
    data = pairs.data_pairs(given.data) if given.data and "data" in given.plan else []
    toy = pairs.toy_pairs(sources) if "toy" in given.plan else []
    runs = pairs.own_plan(pairs.data_pairs(given.data)) if own else pairs.plan(toy, data, given.runs)
    if not runs:
        raise ConfigError("--plan: nothing to run: `data` takes --data DIR.")
    if given.list:
        print(*(f"{run.pair.name}: {run.note}" for run in runs), sep="\n")
        return
    if not given.offline:
        pairs.prepare(sources, [run.pair for run in runs])
        Adaptations(given.work, given.processes, given.overrides).execute(runs)
    text, found = report(given.work, runs)
    if not text:
        raise ConfigError(f"--offline: {given.work} has no finished run of this plan; leave --offline out.")
    write_json(given.work / "label_free.json", found)
    print(text)
    if given.markdown:
        given.markdown.write_text(text + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    tolerant_output()
    parser = OneLineParser(prog="python -m bench.label_free", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every adaptation")
    parser.add_argument("--plan", nargs="+", choices=PLANS, default=["toy", "data"],
                        help="kinds of pairs (default: toy data); own: each pair of --data once, with the settings of "
                        "config/own_config.yml")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the configurations of one's own pairs")
    parser.add_argument("--runs", type=int, default=pairs.RUNS, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the runs of the plan and end")
    parser.add_argument("--offline", action="store_true", help="only the tables, of the runs that are done")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to FILE as well")
    parser.add_argument("--work", type=Path, default=Path("data/label_free"), metavar="DIR",
                        help="worlds, runs and label_free.json (default: %(default)s)")
    parser.add_argument("--configs", type=Path, default=Path("config/toy"), metavar="DIR",
                        help="the toy world's configuration files (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="runs at a time (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    given = parser.parse_intermixed_args(arguments)
    return guarded(lambda: bench(given), given.debug)


if __name__ == "__main__":
    leave(main())
