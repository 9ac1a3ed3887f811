"""Measuring: each variant of a row in a process of its own, in turns; medians, ratios, peak memory, and the table.

Only ratios of one run count: variants take turns, so that a machine that slows down slows them all. A process of its
own keeps what one variant asks of the allocator or of cuDNN, and the memory that it holds, from the others.
"""
import contextlib
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """Median and range of one variant's repeats, in the row's unit."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of the table: a piece of work in named variants, usually `baseline` (bench/baseline.py), `product` (the
    project's code) and `floor` (the part that nothing can save).

    prepare(inputs, variant, **settings), a function of a module, returns (work, units): a function to be timed, and the
    units of work in one call, by which its seconds are divided. Where the row's unit is not `s`, work returns the
    figure itself, a float, and runs once. ratios: of medians, with targets: `baseline/product >= 2`, `product <= 64`,
    or without one, `large/small`.
    """

    title: str
    prepare: Callable[..., tuple[Callable[[], Any], float]]
    variants: tuple[str, ...]
    ratios: tuple[str, ...]
    settings: dict = field(default_factory=dict)
    unit: str = "s"
    repeats: int = 5


def measure(row: Row, inputs, repeats: int | None = None) -> dict[str, Spread]:
    """The figures of each variant. inputs: `bench.inputs.Inputs`. repeats: in place of the row's own."""
    with contextlib.ExitStack() as processes:
        works = {v: processes.enter_context(process(row.prepare, inputs, v, row.settings)) for v in row.variants}
        return interleave(works, repeats or row.repeats) if row.unit == "s" else interleave(works, 1, warm_up=False)


def interleave(works: dict[str, Callable[[], float]], repeats: int, warm_up: bool = True) -> dict[str, Spread]:
    """Call each once to warm up, then `repeats` times in turns; what they return are the figures."""
    for work in works.values() if warm_up else ():
        work()
    turns = [[work() for work in works.values()] for _ in range(repeats)]
    return {name: Spread(statistics.median(v), min(v), max(v)) for name, v in zip(works, zip(*turns))}


@contextlib.contextmanager
def process(*arguments):
    """Work in a process of its own; arguments: of `begin`. Yields a function that runs the work once and returns its
    seconds a unit, or the float that the work has returned; what the work raises, it raises."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin, arguments) as pool:
        pool.submit(len, "").result()  # now it is prepared
        yield lambda: pool.submit(run).result()


def begin(prepare: Callable, inputs, variant: str, settings: dict) -> None:
    """In the other process: prepare its work."""
    global _work, _units
    sys.stdout = sys.stderr  # stdout has the table alone
    _work, _units = prepare(inputs, variant, **settings)


def run() -> float:
    """In the other process: its figure."""
    import torch
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    value = _work()
    wait()
    return value if isinstance(value, float) else (time.perf_counter() - start) / _units


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
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = info.partition("model name")[2].partition("\n")[0].lstrip("\t: ") or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (f"{name}, {cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, Python "
            f"{platform.python_version()}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}")


def judged(ratio: str, values: dict[str, Spread]) -> tuple[float, bool]:
    """The value of one of a row's ratios, and whether it meets its target; without one it does."""
    names, relation, bound = (*ratio.split(), "", "0")[:3]
    over, _, under = names.partition("/")
    value = values[over].median / (values[under].median if under else 1)
    return value, {">=": value >= float(bound), "<=": value <= float(bound), "": True}[relation]


def table(measured: list[tuple[Row, dict[str, Spread]]]) -> str:
    """The figures as Markdown; variants without a column stand with their medians in the last one."""
    head = ("work", "baseline", "product", "floor", "ratio", "target", "spread")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row, values in measured:
        cells = [number(values[v].median, row.unit) if v in values else "-" for v in head[1:4]]
        found = {ratio: judged(ratio, values) for ratio in row.ratios}
        spread = [f"{name}{'' if name in head else f' {number(v.median, row.unit)},'} {number(v.low, row.unit)}.."
                  f"{number(v.high, row.unit)}" for name, v in values.items() if v.low < v.high or name not in head]
        cells += [", ".join(f"{value:.2f}" for value, _ in found.values()),
                  ", ".join(f"{ratio}{'' if met else ' (missed)'}" for ratio, (_, met) in found.items()),
                  ", ".join(spread) or "-"]
        lines.append("| " + " | ".join([row.title, *cells]) + " |")
    return "\n".join(lines)


def number(value: float, unit: str) -> str:
    """Four digits with a unit; less than a second in milliseconds."""
    return f"{1000 * value:.4g} ms" if unit == "s" and value < 1 else f"{value:.4g} {unit}"
