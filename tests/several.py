"""A stage script as one process of several, to which something happens at a chosen moment.

    torchrun --nproc_per_node 2 tests/several.py '{"rank": 1, "step": 3, "do": "SIGKILL"}' run.py key=value ...

In the middle of step 3, counted from 1 in each process, process 1 does this to itself: it sends itself the signal, or,
by `launcher:SIGTERM`, the signal to torchrun, or raises the error of that name. A restarted process does nothing.
`words`: more words, of process `rank` alone. Each process appends a line to `known-RANK.txt` at every saved state: the
step, and a hash of all parts of the state but the log's. `end`: seconds that closing a run's log takes longer, as on a
slow disk.
"""
import builtins
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import run as run_script
import run_so as run_so_script
from trainer.loop import Trainer
from utils import distributed
from utils.cli import leave, run_stage
from utils.logger import RunLog


def happen(what):
    if what.startswith("launcher:"):
        os.kill(os.getppid(), getattr(signal, what.partition(":")[2]))
    elif what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
    else:
        raise getattr(builtins, what)("this is meant to happen")


def known(value, result):
    """Add a nested value of tensors and plain values to a hash."""
    if isinstance(value, torch.Tensor):
        result.update(value.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key, inner in value.items():
            result.update(repr(key).encode())
            known(inner, result)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            known(inner, result)
    else:
        result.update(repr(value).encode())
    return result


def main(plan, script, *words):
    plan, steps = json.loads(plan), [0]
    mine = plan.get("rank") == distributed.rank()
    step, save, close = Trainer.step, Trainer.save_state, RunLog.close

    def watched_step(self, *arguments):
        steps[0] += 1
        if mine and steps[0] == plan.get("step") and not distributed.restarted():
            happen(plan["do"])
            while plan["do"].startswith("launcher:") and not self.interrupt.requested:
                time.sleep(0.01)  # until torchrun has passed it on
        return step(self, *arguments)

    def watched_save(self, wait=True):
        save(self, wait)
        parts = {name: part.state_dict() for name, part in self._parts().items() if name != "log"}
        with open(f"known-{distributed.rank()}.txt", "a", encoding="utf-8") as file:
            print(self.position.global_step, known(parts, hashlib.sha256()).hexdigest(), file=file)

    def slow_close(self):
        time.sleep(plan.get("end", 0))
        close(self)
    Trainer.step, Trainer.save_state, RunLog.close = watched_step, watched_save, slow_close
    sys.argv = [script, *words, *(plan.get("words", []) if mine else [])]
    module, fixed = (run_so_script, {"method": "source_only"}) if script == "run_so.py" else (run_script, {})
    return run_stage("a test", "tiny.yml", module.run, **fixed)


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
