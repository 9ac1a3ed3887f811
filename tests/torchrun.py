"""Starting a program in several processes by torchrun, as a user does."""
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAIN_REFUSES = "rank      : 0 (local_rank: 0)\n  exitcode  : 2 "  # of torchrun's report


def torchrun(processes, *words, folder=ROOT, options=(), timeout=300, **environment):
    """Run `torchrun --nproc_per_node N words`, with a port of its own. Returns the CompletedProcess, with its text.

    If it does not end in time, all of its processes are killed and TimeoutExpired is raised: a hang is a failure."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
               "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", *options, *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          start_new_session=True) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            kill_tree(process.pid)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def kill_tree(pid):
    """Kill a process and all below it; torchrun starts its processes in sessions of their own."""
    for child in children(pid):
        kill_tree(child)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children(pid):
    """The process ids of the direct children of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return found
