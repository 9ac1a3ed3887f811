"""Runs of the project's scripts as processes of one thread each, done once, stopped and resumed."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from utils.checkpoint import write_atomically
from utils.errors import UserError


class Processes:
    """Runs that are done, or are to be done, `processes` at a time. A subclass says what a run is (anything hashable).

    A run's folder holds run.json, {"command", "seconds": of CPU time, and `figures` of the run}, and output.txt.
    """

    def __init__(self, processes: int):
        self.processes = processes

    def title(self, run) -> str:
        """What the run is called in messages."""
        raise NotImplementedError

    def folder(self, run) -> Path:
        raise NotImplementedError

    def command(self, run) -> list[str]:
        """Of the process, behind `python`. A run is done again when it differs."""
        raise NotImplementedError

    def figures(self, run) -> dict:
        """What a process that has ended well has left, with the mIoU in percent as "miou"."""
        raise NotImplementedError

    def failed(self, run, exit_code: int) -> dict:
        """What takes the place of `figures` for a process that has ended badly. Here: raises UserError."""
        raise UserError(f"{self.title(run)}: ended with exit code {exit_code}: the last lines of "
                        f"{self.folder(run) / 'output.txt'} say why.")

    def result(self, run) -> dict | None:
        """The content of run.json; None: not done yet."""
        try:
            found = json.loads((self.folder(run) / "run.json").read_text())
        except (OSError, ValueError):
            return None
        return found if found["command"] == self.command(run) and "miou" in found else None

    def execute(self, runs: list) -> None:
        """Do those that are not done. Raises what `failed` raises for one that ends badly."""
        waiting, running = [run for run in dict.fromkeys(runs) if self.result(run) is None], {}
        try:
            while waiting or running:
                while waiting and len(running) < self.processes:
                    run = waiting.pop(0)
                    process = self.begin(run)
                    running[process.pid] = process, run
                pid, status, usage = os.wait4(-1, 0)  # which knows the CPU time of that one
                if pid not in running:  # a helper of Python's own
                    continue
                process, run = running.pop(pid)
                process.returncode = os.waitstatus_to_exitcode(status)
                miou = self.end(run, process.returncode, usage.ru_utime + usage.ru_stime)["miou"]
                print(f"{self.title(run)}: {'failed' if miou is None else f'{miou:.2f}'} ({len(waiting)} waiting)",
                      file=sys.stderr, flush=True)
        finally:
            for process, _ in running.values():
                process.terminate()  # it saves its state
            for process, _ in running.values():
                process.wait()

    def begin(self, run) -> subprocess.Popen:
        """Start a process, which goes on where an earlier one with the same command has been stopped."""
        folder, command = self.folder(run), self.command(run)
        file = folder / "run.json"
        if not (file.is_file() and json.loads(file.read_text())["command"] == command):
            shutil.rmtree(folder, ignore_errors=True)
            write_json(file, {"command": command})
        with open(folder / "output.txt", "a", encoding="utf-8") as output:
            return subprocess.Popen([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT,
                                    env={**os.environ, "OMP_NUM_THREADS": "1"})

    def end(self, run, exit_code: int, seconds: float) -> dict:
        """Write what a process has left, and return it."""
        figures = self.failed(run, exit_code) if exit_code else self.figures(run)
        write_json(self.folder(run) / "run.json", {"command": self.command(run), **figures, "seconds":
                                                   round(seconds, 1)})
        return figures


def write_json(path: Path, content) -> None:
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table of a head and rows of cells."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])
