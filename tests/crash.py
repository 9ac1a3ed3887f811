"""Kill runs at chosen moments, resume them, compare them with a run that was not killed.

    python tests/crash.py FOLDER METHOD[,METHOD...] TRIALS SEED     (test_resume.py calls it)

FOLDER holds tiny.yml, the toy world and the weights that the methods start from. Every run is a fork of this process,
which has imported everything but has computed nothing. Each critical moment in it counts as an event: before and
after a step and an optimiser step, inside a checkpoint's or state's file, before and after its renaming, at each image
scored, inside each pseudo-label file, at each image validated. A fork told to die at event n sends itself SIGKILL
there. Prints one line a trial; exit code 1 if a trial ends with other weights, model folders, pseudo labels or log.
"""
import contextlib
import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # an optimiser imports it: a second in every fork

sys.path.insert(0, str(Path(__file__).parent.parent))
import run as run_script
import run_so as run_so_script
from trainer import evaluate, rounds
from trainer.loop import Trainer
from trainer.methods import find, known
from utils import checkpoint
from utils.config import load_config
from utils.errors import NothingToDo

START = {"source_only": "None", "be": "snapshot/tiny/ld.pth"}  # else the source-only network


class Events:
    """Counts moments in this process and kills it at the chosen one (None: never)."""

    def __init__(self, fatal: int | None):
        self.fatal, self.count = fatal, 0

    def __call__(self):
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, name):
        """Events before and after every call of owner.name."""
        call = getattr(owner, name)

        def watched(*arguments, **named):
            self()
            result = call(*arguments, **named)
            self()
            return result
        setattr(owner, name, watched)

    def install(self):
        self.around(Trainer, "step")
        self.around(torch.optim.SGD, "step")
        self.around(checkpoint.os, "replace")
        self.around(rounds.selection, "pack_scores")
        self.around(evaluate, "confusion_matrix")
        save, write_bytes = torch.save, Path.write_bytes

        def half_save(state, file):
            whole = io.BytesIO()
            save(state, whole)
            content = whole.getvalue()
            file.write(content[: len(content) // 2])
            file.flush()
            self()
            file.write(content[len(content) // 2:])

        def half_write(path, content):
            write_bytes(path, bytes(content)[: len(content) // 2])
            self()
            return write_bytes(path, content)
        torch.save, Path.write_bytes = half_save, half_write


def run_stage(method: str, words: list[str], fatal: int | None = None) -> int | None:
    """Fork and run a method in the working directory. Returns the number of its events, None if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open("child.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log), \
                    contextlib.redirect_stderr(log):
                events = Events(fatal)
                events.install()
                start = START.get(method, "snapshot/tiny/source_only.pth")
                longer = [] if "round" in find(method).keys else ["epochs=2"]
                cfg = load_config("tiny.yml", [f"init_weight={start}", "candidate_freq=2", *longer, *words],
                                  method=method)
                with contextlib.suppress(NothingToDo):
                    (run_so_script if cfg.method_class.needs_source else run_script).run(cfg)
                os.write(writer, str(events.count).encode())
                code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as result:
        count = result.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status:
        sys.exit(f"{method} {words}: {Path('child.log').read_text()[-3000:]}")
    return int(count)


def outcome(stage: str) -> dict:
    """The results of a run: weights, pseudo-label files, log without times, scores."""
    events = [json.loads(line) for line in Path(f"log/tiny/{stage}.jsonl").read_text().splitlines()]
    beside = sorted(Path("snapshot/tiny").glob(f"{stage}_*"))  # the chosen network and the verdict
    return {"weights": {str(path): {k: v.numpy().tobytes() for k, v in torch.load(path, weights_only=True).items()}
                        for path in (Path(f"snapshot/tiny/{stage}.pth"), *beside) if path.suffix == ".pth"},
            "verdict": [path.read_text() for path in beside if path.suffix == ".json"],
            "folders": {str(p): p.read_bytes() for folder in (stage, f"{stage}_chosen")
                        for p in sorted(Path("snapshot/tiny", folder).rglob("*")) if p.is_file()},
            "pseudo labels": {str(p): p.read_bytes() for p in sorted(Path("plabel").rglob("*")) if p.is_file()},
            "log": [{k: v for k, v in event.items() if k != "seconds"} for event in events
                    if event["event"] not in ("machine", "cost")],  # of each process
            "scores": Path(f"miou_result/tiny/{stage}.json").read_text(),
            "files": sorted(str(p) for p in Path("snapshot").rglob("*"))}


def clear(stage):
    for folder in ("log", "plabel", "miou_result", *(f"snapshot/tiny/{stage}{end}" for end in (
            "", "_chosen", ".state"))):
        shutil.rmtree(folder, ignore_errors=True)
    for file in Path("snapshot/tiny").glob(f"{stage}[._]*"):
        if file.is_file():
            file.unlink()


def main(folder: str, methods: str, trials: str, seed: str) -> int:
    os.chdir(folder)
    torch.set_num_threads(1)
    known()  # imports them
    return 1 if sum(failures(method, int(trials), int(seed)) for method in methods.split(",")) else 0


def failures(method: str, trials: int, seed: int) -> int:
    """The number of trials with other results."""
    rng, failed, stage = np.random.default_rng(seed), 0, method.rpartition(":")[2]
    clear(stage)
    total = run_stage(method, ["overwrite=true"])
    expected = outcome(stage)
    for trial in range(trials):
        clear(stage)
        deaths = [int(rng.integers(1, total + 1)) for _ in range(rng.integers(1, 4))]
        killed = sum(run_stage(method, ["resume=true"], fatal) is None for fatal in deaths)
        run_stage(method, ["resume=true", f"worker={rng.integers(3)}", f"keep={rng.integers(1, 4)}"])
        found = outcome(stage)
        wrong = [what for what in expected if expected[what] != found[what]]
        failed += bool(wrong)
        print(f"{stage} {trial}: killed {killed} times, at events {deaths} of {total}: "
              f"{'differs in ' + ', '.join(wrong) if wrong else 'equal'}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
