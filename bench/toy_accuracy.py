"""The toy world's accuracy table: the whole demo on several seeds.

    python -m bench.toy_accuracy --seeds 0 1 2

For each seed N it draws the toy world N and runs the three stage scripts with config/toy and seed=N, as `make demo`
does. A fourth row shows what batch-norm statistics alone give: the source-only network after one pass over the
unlabelled target training images that moves its running statistics and trains nothing.
"""
import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utils.cli import OneLineParser, guarded
from utils.errors import UserError

STAGES = {"so_config.yml": "run_so.py", "ld_config.yml": "run.py", "be_config.yml": "run.py"}
ROWS = ("source-only", "target statistics", "LD", "LDBE")


def move_statistics(cfg, weights: str, moved: str) -> None:
    """Save `weights` with the running BN statistics of one pass over the target's training images, one at a time."""
    import torch
    from dataset import loaders, segmentation
    from model.build import build_model, pick_device
    from model.weights import save_weights
    device = pick_device(cfg.device)
    model, _ = build_model(cfg, device, weights)
    samples = segmentation.find_samples(cfg.target, cfg.target_data, "train")
    model.train()
    with torch.no_grad():
        for item in loaders.whole_image_loader(cfg, cfg.target, samples, False):
            model(model.prepare(item["image"].to(device)))
    save_weights(model, moved)


def run_seed(seed: int, root: Path, configs: Path, overrides: list[str], threads: int) -> dict[str, dict]:
    """All stages of one seed in processes of their own: row -> scores (`evaluate.protocol_scores`)."""
    from trainer.report import score_checkpoints
    from utils.config import load_config
    note, world = f"toy_seed{seed}", root / f"seed{seed}"
    words = [f"note={note}", f"seed={seed}", "screen=False", f"gta5.data_dir={world / 'gta5'}",
             f"cityscapes.data_dir={world / 'cityscapes'}", f"snapshot={root / 'snapshot'}", f"log={root / 'log'}",
             f"plabel={root / 'plabel'}", f"result={root / 'result'}", *overrides]
    folder = root / "snapshot" / note
    start = {"so_config.yml": [], "ld_config.yml": [f"init_weight={folder / 'source_only.pth'}"],
             "be_config.yml": [f"init_weight={folder / 'ld.pth'}"]}
    commands = [["-m", "dataset.toy", "--root", str(world), "--seed", str(seed)]]
    commands += [[script, "--config", str(configs / name), *words, *start[name]] for name, script in STAGES.items()]
    world.parent.mkdir(parents=True, exist_ok=True)
    with open(root / f"seed{seed}.log", "w", encoding="utf-8") as log:
        for command in commands:
            code = subprocess.run([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT,
                                  env={**os.environ, "OMP_NUM_THREADS": str(threads)}).returncode
            if code:
                what = " ".join(command[:2 if command[0] == "-m" else 1])
                raise UserError(f"seed {seed}: python {what} ended with exit code {code}: the last lines of {log.name} "
                                "say why.")
    cfg = load_config(configs / "ld_config.yml", words)
    files = {row: str(folder / f"{stem}.pth") for row, stem in zip(ROWS, ("source_only", "moved", "ld", "be"))}
    move_statistics(cfg, files["source-only"], files["target statistics"])
    scores = {row: list(score_checkpoints(cfg, [file]).values())[0] for row, file in files.items()}
    print(f"seed {seed}: " + ", ".join(f"{row} {s['19 classes']['miou']:.2f}" for row, s in scores.items()), flush=True)
    return scores


def table(results: list[dict], seeds: list[int]) -> str:
    """Markdown: a row per network, a column per seed, mean and sample standard deviation; mIoU of the 19 classes."""
    head = ["mIoU, %", *(f"seed {s}" for s in seeds), "mean", "std"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in ROWS:
        values = [r[row]["19 classes"]["miou"] for r in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        lines.append("| " + " | ".join([row, *(f"{v:.1f}" for v in (*values, statistics.mean(values), spread))]) + " |")
    return "\n".join(lines)


def class_table(results: list[dict]) -> str:
    """Markdown: IoU of each class, the mean over the seeds in which it occurs."""
    lines = ["| IoU, % | " + " | ".join(ROWS) + " |", "|" + " --- |" * (len(ROWS) + 1)]
    for name in results[0][ROWS[0]]["19 classes"]["iou"]:
        cells = []
        for row in ROWS:
            values = [r[row]["19 classes"]["iou"][name] for r in results]
            values = [v for v in values if v is not None]
            cells.append(f"{statistics.mean(values):.1f}" if values else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = OneLineParser(prog="python -m bench.toy_accuracy", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("data/bench"), help="worlds, logs and checkpoints go here")
    parser.add_argument("--configs", type=Path, default=Path("config/toy"), help="folder of the three configurations")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every stage")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    given = parser.parse_intermixed_args()
    return guarded(lambda: compare(given), given.debug)


def compare(given) -> None:
    """Run all seeds and print the tables."""
    with ThreadPoolExecutor(given.jobs) as pool:
        results = list(pool.map(lambda seed: run_seed(seed, given.root, given.configs, given.overrides, given.threads),
                                given.seeds))
    print(table(results, given.seeds), class_table(results), sep="\n\n")


if __name__ == "__main__":
    sys.exit(main())
