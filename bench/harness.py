"""Measuring: each variant of a row in a process of its own, in turns; medians, ratios, peak memory, and the table.

Only ratios of one run count: variants take turns, so that a machine that slows down slows them all. A process of its
own keeps what one variant asks of the allocator or of cuDNN, and the memory that it holds, from the others.
"""
import contextlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple

ROOT = Path(__file__).parent.parent


class Spread(NamedTuple):
    """Median and range of one variant's repeats, in the row's unit."""

    median: float
    low: float
    high: float


class Ratio(NamedTuple):
    """Of two variants' medians (`under` None: the median of `over` itself), and the target: `>=` or `<=` a bound."""

    over: str
    under: str | None
    relation: str = ""
    bound: float = 0

    def of(self, values: dict[str, Spread]) -> float:
        return values[self.over].median / (values[self.under].median if self.under else 1)

    def met(self, values: dict[str, Spread]) -> bool:
        return {">=": self.of(values) >= self.bound, "<=": self.of(values) <= self.bound, "": True}[self.relation]

    def __str__(self):
        return f"{self.over}{f'/{self.under}' if self.under else ''}" + f" {self.relation} {self.bound:g}" * bool(
            self.relation)


@dataclass(frozen=True)
class Row:
    """One line of the table: a piece of work in named variants, usually `baseline` (bench/baseline.py), `product` (the
    project's code) and `floor` (the part that nothing can save).

    prepare(inputs, variant, **settings) returns (work, units): a function to be timed, and the units of work in one
    call, by which its seconds are divided. It is a function of a module, and `settings` are plain JSON values, as both
    go to another process. Where the row's unit is not `s`, work returns the figure itself, a float, and runs once.
    """

    title: str
    prepare: Callable[..., tuple[Callable[[], Any], float]]
    variants: tuple[str, ...] = ("baseline", "product")
    ratios: tuple[Ratio, ...] = ()
    settings: dict = field(default_factory=dict)
    unit: str = "s"
    repeats: int = 5


def measure(row: Row, setting: tuple, repeats: int | None = None) -> dict[str, Spread]:
    """The figures of each variant. setting: arguments of `bench.inputs.Inputs.of`, plain JSON values. repeats: in place
    of the row's own."""
    where = f"{row.prepare.__module__}:{row.prepare.__qualname__}"
    with contextlib.ExitStack() as processes:
        works = {v: processes.enter_context(process(where, setting, v, row.settings)) for v in row.variants}
        return interleave(works, repeats or row.repeats) if row.unit == "s" else interleave(works, 1, warm_up=False)


def interleave(works: dict[str, Callable[[], float]], repeats: int, warm_up: bool = True) -> dict[str, Spread]:
    """Call each once to warm up, then `repeats` times in turns; what they return are the figures."""
    for work in works.values() if warm_up else ():
        work()
    turns = [[work() for work in works.values()] for _ in range(repeats)]
    return {name: Spread(statistics.median(v), min(v), max(v)) for name, v in zip(works, zip(*turns))}


@contextlib.contextmanager
def process(prepare: str, *arguments):
    """Work in a process of its own. prepare: "module:function", called there as `Row.prepare`. Yields a function that
    runs the work once and returns its seconds a unit, or the float that the work has returned."""
    command = [sys.executable, "-m", "bench.harness", prepare, json.dumps(arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        def answer():
            if line := child.stdout.readline():
                return json.loads(line)
            raise RuntimeError(f"{prepare} {arguments} has ended")

        def work():
            with contextlib.suppress(BrokenPipeError):  # it has ended: the empty answer says so
                print(file=child.stdin, flush=True)
            return answer()
        try:
            answer()  # it is prepared
            yield work
        finally:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()


def serve(prepare: str, setting: list, variant: str, settings: dict) -> None:
    """The other process: a line of output when the work is prepared, then one for each line of input."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what the work prints is no answer
    import torch
    from bench.inputs import Inputs
    module, function = prepare.split(":")
    work, units = getattr(importlib.import_module(module), function)(Inputs.of(*setting), variant, **settings)
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    print("null", file=answers, flush=True)
    for _ in sys.stdin:
        wait()
        start = time.perf_counter()
        value = work()
        wait()
        seconds = (time.perf_counter() - start) / units
        print(json.dumps(value if isinstance(value, float) else seconds), file=answers, flush=True)


def resident(name: str) -> float:
    """MiB of this process (Linux only, else NaN): `VmRSS` now, `VmHWM` at its highest so far. Not ru_maxrss, which a
    child inherits."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else [f"{name}: nan"]
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def added_peak(work: Callable[[], Any]) -> float:
    """MiB that `work` adds to what is resident now, at its peak."""
    before = resident("VmRSS")
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the highest so far becomes what is resident now
    work()
    return resident("VmHWM") - before


def machine() -> str:
    """One line: CPU, cores, threads, versions, GPU."""
    import torch
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in (info.read_text().splitlines() if info.exists() else ())
             if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (f"{(names or [platform.machine()])[0]}, {cores} cores, {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}, Python {platform.python_version()}, {gpu}")


def table(measured: list[tuple[Row, dict[str, Spread]]]) -> str:
    """The figures as Markdown; variants without a column stand with their medians in the last one."""
    head = ("work", "baseline", "product", "floor", "ratio", "target", "spread")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row, values in measured:
        cells = [number(values[v].median, row.unit) if v in values else "-" for v in head[1:4]]
        ratios = [f"{ratio.of(values):.2f}" for ratio in row.ratios]
        targets = [f"{ratio}{'' if ratio.met(values) else ' (missed)'}" for ratio in row.ratios]
        spread = [f"{name}{'' if name in head else f' {number(v.median, row.unit)},'} {number(v.low, row.unit)}.."
                  f"{number(v.high, row.unit)}" for name, v in values.items() if v.low < v.high or name not in head]
        cells += [", ".join(words) or "-" for words in (ratios, targets, spread)]
        lines.append("| " + " | ".join([row.title, *cells]) + " |")
    return "\n".join(lines)


def number(value: float, unit: str) -> str:
    """Four digits with a unit; less than a second in milliseconds."""
    return f"{1000 * value:.4g} ms" if unit == "s" and value < 1 else f"{value:.4g} {unit}"


if __name__ == "__main__":
    serve(sys.argv[1], *json.loads(sys.argv[2]))
