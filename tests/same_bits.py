"""Does this checkout compute the same bits as another one? Tiny runs of the three stages through the command line.

    python tests/same_bits.py OTHER_CHECKOUT [--python PY]

Both run the same stages on one toy world, each stage from the other checkout's weights, so that a difference shows in
the stage that makes it. Compared are weights, those of the model folders, pseudo labels, scores and the numbers of the
log, times aside; folders, log and scores of this checkout may hold more than the other's, not less. One line a
comparison; exit code 1 if any differs.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

HERE = Path(__file__).resolve().parent.parent
SOURCE, LD = "init_weight={}/so/source_only.pth", "init_weight={}/ld/ld.pth"
RUNS = {"so": ("source_only", ""), "ld": ("ld", SOURCE), "be": ("be", f"{LD} fixbn=true"),
        "ld_bf16": ("ld", f"{SOURCE} amp=bf16"), "ld_checkpointing": ("ld", f"{SOURCE} checkpointing=true"),
        "ld_options": ("ld", f"{SOURCE} entropy=shannon bn_stats=running")}  # note: (stage, words)
TINY = {"amp": "off",
        "layers": [1, 1, 1, 1], "width": 8, "fixbn": False, "batch_size": 2, "worker": 0, "device": "cpu",
        "input_src": 64, "input_tgt": 64, "crop_src": 64, "crop_tgt": 64, "learning_rate": 0.005, "num_steps": 10,
        "epochs": 1, "round": 2, "cb_prop": 0.2, "val_freq": 4, "save_freq": 3, "print_freq": 1, "screen": False,
        "tensorboard": False, "init_weight": "None",
        **{n: {"data_dir": f"../world/{n}", "input_size": [128, 64]} for n in ("gta5", "cityscapes")}}


def run(*commands: tuple[Path, list]) -> None:
    """Commands side by side, each in its folder and on one thread; one that fails ends this script."""
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT) for folder, command in commands]
    for process, said in [(process, process.communicate()[0]) for process in started]:
        if process.returncode:
            sys.exit(f"{' '.join(map(str, process.args))} failed:\n{said}")


def results(folder: Path, note: str, stage: str) -> dict:
    """What a run has left, as nested dicts and lists of plain values."""
    tensors = torch.load(folder / "snapshot" / note / f"{stage}.pth", weights_only=True)
    folders = {p.name: (p / "model.safetensors").read_bytes() for p in (folder / "snapshot" / note).glob(f"{stage}*")
               if (p / "model.safetensors").is_file()}
    labels, events = {str(p.relative_to(folder)): p for p in (folder / "plabel" / note).rglob("*.png")}, {}
    for event in map(json.loads, (folder / "log" / note / f"{stage}.jsonl").read_text().splitlines()):
        events.setdefault(event["event"], []).append({k: v for k, v in event.items() if k not in ("seconds", "memory")})
    return {"weights": {k: (v.dtype, v.shape, v.contiguous().numpy().tobytes()) for k, v in tensors.items()},
            "folders": folders,
            "pseudo labels": {k: (np.asarray(Image.open(p)).tolist(), p.read_bytes()) for k, p in labels.items()},
            "scores": json.loads((folder / "miou_result" / note / f"{stage}.json").read_text()), "log": events}


def differences(ours, theirs, more: bool, where: str = "") -> list[str]:
    """Where ours differs from theirs; more: dicts of ours may hold more."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        extra = [] if more else [f"{where}/{k} is new" for k in ours.keys() - theirs.keys()]
        return extra + [d for k in theirs for d in (differences(ours[k], theirs[k], more, f"{where}/{k}")
                                                    if k in ours else [f"{where}/{k} is missing"])]
    if isinstance(theirs, list) and isinstance(ours, list) and len(ours) == len(theirs):
        return [d for i, pair in enumerate(zip(ours, theirs)) for d in differences(*pair, more, f"{where}/{i}")]
    return [] if ours == theirs else [where]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--python", default=sys.executable, help="interpreter of both (default: this one)")
    given, failed = parser.parse_args(), False
    with tempfile.TemporaryDirectory() as root:
        checkouts = {Path(root, "ours"): HERE, Path(root, "theirs"): given.other.resolve()}
        world = ["--root", f"{root}/world", "--size", "128", "64", "--source", "8", "--synthia", "0", "--train", "10",
                 "--val", "3"]
        run((HERE, [given.python, "-m", "dataset.toy", *world]))
        for folder in checkouts:
            folder.mkdir()
            (folder / "tiny.yml").write_text(yaml.safe_dump(TINY))
        for note, (stage, words) in RUNS.items():
            script, *more = ["run_so.py"] if stage == "source_only" else ["run.py", f"method={stage}"]
            more += ["--config", "tiny.yml", f"note={note}", *words.format("../theirs/snapshot").split()]
            run(*[(folder, [given.python, checkout / script, *more]) for folder, checkout in checkouts.items()])
            ours, theirs = (results(folder, note, stage) for folder in checkouts)
            for what in theirs:
                found = differences(ours[what], theirs[what], more=what in ("folders", "scores", "log"))
                print(f"{note}: {what}: {f'{len(found)} DIFFER, first {found[0]}' if found else 'equal'}", flush=True)
                failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
