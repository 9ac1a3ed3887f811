"""All methods side by side on the toy world, each with settings of its own.

    python -m bench.methods [METHOD ...] [key=value ...] [--work DIR] [--processes N]

Every seed is a toy world with a source-only network of its own (config/toy/so_config.yml). On the tuning seeds each
method runs once with each of its trials, the same number for all, and the one with the highest mean mIoU is chosen; so
labels of the tuning seeds are used, which an adaptation without labels does not have. The chosen one then runs on
the seeds of the table. A method that follows another (`after`) starts from that one's chosen checkpoint.

Runs are processes of their own with one thread each. What has been done is kept in DIR: the same command goes on.
"""
import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Processes, markdown, write_json
from utils.cli import OneLineParser, guarded, leave, tolerant_output
from utils.errors import ConfigError

SOURCE_ONLY, PROTOCOL = "source_only", "19 classes"
CONFIGS = {SOURCE_ONLY: "so_config.yml", "be": "be_config.yml"}  # in --configs; of all others ld_config.yml
# Method -> its trials: what each changes in that file, "" for nothing. A method without a line here has ANY.
ANY = ("", "learning_rate=0.001", "learning_rate=0.0001", "learning_rate=0.003")
TRIALS = {
    "be": ("", "learning_rate=0.0005", "conf_thresh=0.9", "cb_prop=0.2"),
    "bn_adapt": ("", "bn_momentum=0.1", "alpha=0.2", "bn_variance=population"),
    "cbst": ("", "learning_rate=0.001", "cb_prop=0.4", "round=3 epochs=1 num_steps=75"),
    "crst_mrkld": ("", "learning_rate=0.001", "kld_weight=0.01", "cb_prop=0.4"),
    "infomax": ("", "learning_rate=0.001", "learning_rate=0.0001", "freeze_head=False"),
    "ld": ("", "learning_rate=0.001", "cb_prop=0.4", "entropy=shannon"),
    "maxsquare": ("", "class_balance=0.2", "learning_rate=0.0001", "class_balance=0.2 learning_rate=0.001"),
    "mean_teacher": ("", "learning_rate=0.001", "learning_rate=0.003", "conf_thresh=0.9 learning_rate=0.001"),
    "pseudo_select": ("", "learning_rate=0.001", "cb_prop=0.4", "cb_prop=0.4 learning_rate=0.001"),
}


@dataclass(frozen=True)
class Run:
    """One process: a method with a setting (words as of `TRIALS`) on a seed's world, from the checkpoint of `start`."""

    seed: int
    method: str
    setting: str
    start: "Run | None"


class Runs(Processes):
    """Runs that are done, or are to be done, below the folder `work`. overrides: words for every run."""

    def __init__(self, work: Path, configs: Path, processes: int, overrides: list[str]):
        super().__init__(processes)
        self.work, self.configs, self.overrides = work.resolve(), configs, overrides

    def world(self, seed: int) -> Path:
        return self.work / f"seed{seed}" / "world"

    def note(self, run: Run) -> str:
        start = f" from {self.note(run.start)}" if run.start and run.start.method != SOURCE_ONLY else ""
        return " ".join([run.method, *run.setting.split()]) + start

    def title(self, run):
        return f"seed {run.seed}, {self.note(run)}"

    def folder(self, run):
        return self.work / f"seed{run.seed}" / "runs" / self.note(run)

    def command(self, run):
        world = self.world(run.seed)
        start = [f"method={run.method}", f"init_weight={self.folder(run.start) / run.start.method}.pth"] if (
            run.start) else []
        return ["run.py" if start else "run_so.py", "--config",
                str(self.configs / CONFIGS.get(run.method, "ld_config.yml")), *start, f"note={self.note(run)}",
                f"seed={run.seed}", "worker=0", "screen=False", "tensorboard=False", "resume=True",
                "val_freq=1000000",  # scored once, at the end
                f"gta5.data_dir={world / 'gta5'}", f"cityscapes.data_dir={world / 'cityscapes'}",
                *(f"{room}={self.folder(run).parent}" for room in ("snapshot", "log", "plabel", "result")),
                *self.overrides, *run.setting.split()]

    def figures(self, run):
        """{"miou": percent, "iou": {class: percent}}."""
        scores = json.loads((self.folder(run) / f"{run.method}.json").read_text())[PROTOCOL]
        return {"miou": scores["miou"], "iou": scores["iou"]}


def chosen(scores: dict[str, list[float]]) -> str:
    """The setting with the highest mean score, the first of equals. scores: setting -> mIoU on each tuning seed."""
    return max(scores, key=lambda setting: sum(scores[setting]))


def levels(names: list[str]) -> list[list[str]]:
    """The methods and those that they follow (`after`), each one level behind the one that it follows."""
    from trainer import methods
    def chain(name):
        return [name] if name == SOURCE_ONLY else [*chain(methods.find(name).after), name]
    depth = {name: i for last in names for i, name in enumerate(chain(last))}
    return [[name for name in depth if depth[name] == i] for i in range(max(depth.values()) + 1)]


def survey(runs: Runs, names: list[str], seeds: list[int], tuning: list[int], trials: int,
           source: str = "") -> dict[str, dict]:
    """Method -> {"setting": the chosen one, "tuned": {setting: mIoU of each tuning seed}, "results": `Runs.result` of
    each seed}. With one trial there is nothing to choose, and no tuning seed is touched. source: setting of
    the source-only networks."""
    from trainer import methods
    setting, tuned, tuning = {SOURCE_ONLY: source}, {SOURCE_ONLY: {}}, tuning if trials > 1 else []
    def run(name, words, seed):
        after = "" if name == SOURCE_ONLY else methods.find(name).after
        return Run(seed, name, words, run(after, setting[after], seed) if after else None)
    runs.execute([run(SOURCE_ONLY, source, seed) for seed in [*tuning, *seeds]])
    for level in levels(names)[1:]:
        plan = {name: {words: [run(name, words, seed) for seed in tuning] for words in TRIALS.get(name, ANY)[:trials]}
                for name in level}
        by_trial = zip(*(of_method.values() for of_method in plan.values()))  # a survey cut short has the first trials
        runs.execute([one for trial in by_trial for ones in trial for one in ones])
        for name, of_method in plan.items():
            tuned[name] = {words: [runs.result(one)["miou"] for one in ones] for words, ones in of_method.items()}
            setting[name] = chosen(tuned[name])
    for seed in seeds:
        for level in levels(names)[1:]:
            runs.execute([run(name, setting[name], seed) for name in level])
    return {name: {"setting": setting[name], "tuned": tuned[name],
                   "results": [runs.result(run(name, setting[name], seed)) for seed in seeds]} for name in setting}


def table(found: dict[str, dict], seeds: list[int]) -> str:
    """Markdown: a row per method, source-only first, then the best first; mIoU of each seed, its mean and sample
    standard deviation, the chosen setting, and the median of the runs' CPU time."""
    from trainer import methods
    head = ["mIoU, %", *(f"seed {s}" for s in seeds), "mean", "std", "chosen setting", "CPU s"]
    rows = {}
    for name, of_method in found.items():
        values = [r["miou"] for r in of_method["results"]]
        mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        title = methods.find(name).title or name
        cells = [title if title == name else f"{title} (`{name}`)", *(f"{v:.1f}" for v in (*values, mean, spread)),
                 f"`{of_method['setting']}`" if of_method["setting"] else "-",
                 f"{statistics.median(r['seconds'] for r in of_method['results']):.0f}"]
        rows[name] = (name != SOURCE_ONLY, -mean, cells)
    return markdown([head, *(cells for *_, cells in sorted(rows.values()))])


def class_table(found: dict[str, dict]) -> str:
    """Markdown: IoU of each class, the mean over the seeds in which it occurs."""
    from trainer import methods
    lines = [["IoU, %", *(methods.find(name).title or name for name in found)]]
    for name in found[SOURCE_ONLY]["results"][0]["iou"]:
        values = [[v for r in of_method["results"] if (v := r["iou"][name]) is not None] for of_method in
                  found.values()]
        lines.append([name, *(f"{statistics.mean(v):.1f}" if v else "-" for v in values)])
    return markdown(lines)


def compare(given) -> None:
    """Draw the worlds, run everything, print the tables."""
    from dataset.toy import write_toy_world
    from trainer import methods
    overrides = [word for word in given.words if "=" in word]
    names = [word for word in given.words if word not in overrides] or list(methods.known())
    if unknown := set(names) - set(methods.known()):
        raise ConfigError(f"no method {min(unknown)!r}; there are {', '.join(methods.known())}.")
    if not 1 <= given.trials <= len(ANY):
        raise ConfigError(f"--trials: {given.trials} is not within 1..{len(ANY)}.")
    if both := set(given.seeds) & set(given.tune):
        raise ConfigError(f"--tune: {min(both)} is one of --seeds as well: choose on other seeds.")
    runs = Runs(given.work, given.configs, given.processes, overrides)
    for seed in [*(given.tune if given.trials > 1 else []), *given.seeds]:
        write_toy_world(runs.world(seed), seed)
    found = survey(runs, names, given.seeds, given.tune, given.trials,
                   f"num_steps={given.source_steps}" if given.source_steps else "")
    write_json(given.work / "methods.json", {"seeds": given.seeds, "tuning seeds": given.tune, "methods": found})
    print(table(found, given.seeds), *([class_table(found)] if given.classes else []), sep="\n\n")


def main(arguments: list[str] | None = None) -> int:
    tolerant_output()
    parser = OneLineParser(prog="python -m bench.methods", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="word", help="methods (default: all), and key=value for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--tune", type=int, nargs="+", default=[3, 4], metavar="N",
                        help="seeds on which settings are chosen (default: 3 4)")
    parser.add_argument("--trials", type=int, default=len(ANY), metavar="N", help="of each method (default: "
                        "%(default)s); 1: the setting of --configs, and nothing is tuned")
    parser.add_argument("--source-steps", type=int, metavar="N", help="of the source-only networks (default: as in "
                        "--configs)")
    parser.add_argument("--classes", action="store_true", help="print the IoU of each class as well")
    parser.add_argument("--work", type=Path, default=Path("data/bench"), metavar="DIR",
                        help="worlds, runs and methods.json (default: %(default)s)")
    parser.add_argument("--configs", type=Path, default=Path("config/toy"), metavar="DIR",
                        help="the configuration files (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="runs at a time (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    given = parser.parse_intermixed_args(arguments)
    return guarded(lambda: compare(given), given.debug)


if __name__ == "__main__":
    leave(main())
