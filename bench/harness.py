"""Measuring: interleaved medians, work in processes of its own, peak memory, checks, and the table.

A row of the table compares named variants of one piece of work: `obvious` (bench/baseline.py), `ours`, and `floor`, the
part that nothing can save. Only ratios of one run count: variants take turns, so that a machine that slows down slows
them all.
"""
import contextlib
import importlib
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).parent.parent
MIB = 2**20


@dataclass(frozen=True)
class Spread:
    """Median and range of one variant's repeats, in the row's unit."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of two variants' medians; relation: `>=` or `<=`."""

    over: str
    under: str
    relation: str
    bound: float

    def ratio(self, values: dict[str, Spread]) -> float:
        return values[self.over].median / values[self.under].median

    def met(self, values: dict[str, Spread]) -> bool:
        return {">=": operator.ge, "<=": operator.le}[self.relation](self.ratio(values), self.bound)

    def __str__(self):
        return f"{self.over}/{self.under} {self.relation} {self.bound:g}"


@dataclass(frozen=True)
class Check:
    """An agreement between the obvious version and ours: `value` must not exceed `limit` (NaN fails)."""

    name: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


@dataclass
class Row:
    """One line of the table. values: variant -> Spread; extra: markdown lines that follow the table."""

    work: str
    values: dict[str, Spread] = field(default_factory=dict)
    unit: str = "s"
    targets: list[Target] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)


def interleave(variants: dict[str, Callable], repeats: int, per: float = 1, synchronize: Callable = lambda: None,
               clock: Callable[[], float] = time.perf_counter) -> dict[str, Spread]:
    """Seconds of each variant: one warm-up each, then `repeats` rounds in which every variant runs once.

    per: units of work in one call, by which the time is divided. synchronize: waits for a device's queue; called before
    each reading of the clock.
    """
    for work in variants.values():
        work()
    seconds = {name: [] for name in variants}
    for _ in range(repeats):
        for name, work in variants.items():
            synchronize()
            start = clock()
            work()
            synchronize()
            seconds[name].append((clock() - start) / per)
    return {name: Spread.of(values) for name, values in seconds.items()}


@contextlib.contextmanager
def elsewhere(prepare: str, *arguments):
    """Work in a process of its own, which nothing of this one's settings reaches (its allocator, say).

    prepare: "module:function"; called there with `arguments` (plain JSON values), it returns the work. Yields a
    function that runs the work once and returns {"result": what it returned, as JSON, "peak": MiB that it added at its
    peak}. The peak (Linux only, else NaN) is the highest resident set during the work (VmHWM, reset just before) minus
    the resident set before it. It is not ru_maxrss, which a child process inherits from its parent and which earlier
    peaks hide.
    """
    command = [sys.executable, "-m", "bench.harness", prepare, json.dumps(arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        def work():
            with contextlib.suppress(BrokenPipeError):  # it has ended: the empty answer says so
                print(file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                raise RuntimeError(f"{prepare} has ended")
            return json.loads(answer)
        try:
            yield work
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def peak_memory(prepare: str, *arguments) -> float:
    """MiB that some work adds at its peak when it runs for the first time; arguments as in `elsewhere`."""
    with elsewhere(prepare, *arguments) as work:
        return work()["peak"]


def _serve(prepare: str, arguments: list) -> None:
    """The other process: one run for each line of its input, one line of output for each."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what the work prints is no answer
    module, function = prepare.split(":")
    work = getattr(importlib.import_module(module), function)(*arguments)
    for _ in sys.stdin:
        before = _resident("VmRSS", reset=True)
        result = work()
        print(json.dumps({"result": result, "peak": _resident("VmHWM") - before}), file=answers, flush=True)


def _resident(name: str, reset: bool = False) -> float:
    """A figure of /proc/self/status, in MiB; reset: put the high-water mark back first."""
    if not Path("/proc/self/status").exists():
        return float("nan")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / MIB
    raise KeyError(name)


def process_seconds(*arguments: str) -> Callable:
    """Work that runs a fresh Python process with these arguments from the project's root."""
    return lambda: subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def machine() -> str:
    """One line: CPU, cores, threads, versions, GPU."""
    import torch
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}, {gpu}")


def table(rows: list[Row]) -> str:
    """The measurements as markdown."""
    head = ("work", "obvious", "ours", "floor", "ratio", "target", "spread")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [_number(row.values[v].median, row.unit) if v in row.values else "-" for v in head[1:4]]
        ratios = ", ".join(f"{t.ratio(row.values):.2f}" for t in row.targets) if row.values else ""
        targets = ", ".join(f"{t}{'' if t.met(row.values) else ' (missed)'}" for t in row.targets) if row.values else ""
        spread = ", ".join(f"{name} {_number(s.low, row.unit)}..{_number(s.high, row.unit)}"
                           for name, s in row.values.items() if s.low < s.high)
        lines.append("| " + " | ".join([row.work, *cells, ratios or "-", targets or "-", spread or "-"]) + " |")
    return "\n".join(lines)


def agreement(rows: list[Row]) -> str:
    """The checks as a markdown list."""
    return "\n".join(f"- {row.work}: {check.name} {check.value:.3g}, at most {check.limit:g}: "
                     f"{'agrees' if check.holds else 'DISAGREES'}" for row in rows for check in row.checks)


def report(rows: list[Row]) -> str:
    """Machine, table, further tables, agreement."""
    extra = ["\n".join(row.extra) for row in rows if row.extra]
    checks = agreement(rows)
    parts = [f"Machine: {machine()}.", table(rows), *extra]
    parts += ["Agreement of the obvious version and ours:\n" + checks] if checks else []
    return "\n\n".join(parts) + "\n"


def _number(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        value, unit = 1000 * value, "ms"
    return f"{value:.4g} {unit}"


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
