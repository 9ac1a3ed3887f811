"""The measuring entry: turns, medians, targets, peak memory and the table are right; every row runs. That baseline and
product agree is tested in test_baseline.py."""
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from bench import __main__ as entry
from bench import labelling, training
from bench.harness import Row, Spread, added_peak, interleave, judged, measure, process, table
from bench.inputs import FULL, QUICK, Inputs
from bench.rows import rows
from dataset import loaders

ROOT = Path(__file__).parent.parent


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path, QUICK)


def test_interleave_takes_turns_and_medians():
    order = []

    def work(name, figures):
        figures = iter(figures)
        return lambda: order.append(name) or next(figures)
    values = interleave({"a": work("a", [100, 2, 8, 4]), "b": work("b", [100, 1, 1, 1])}, 3)
    assert order == ["a", "b"] * 4
    assert values == {"a": Spread(4, 2, 8), "b": Spread(1, 1, 1)}  # the warm-up of 100 is not among them


def test_ratios_and_targets():
    values = {"baseline": Spread(3.0, 1, 9), "product": Spread(2.0, 2, 2)}
    assert judged("baseline/product >= 1.5", values) == (1.5, True) == judged("baseline/product <= 1.5", values)
    assert judged("baseline/product >= 1.6", values) == (1.5, False) == judged("baseline/product <= 1.4", values)
    assert judged("product <= 2", values) == (2.0, True) and judged("product <= 1.9", values) == (2.0, False)
    assert judged("product/baseline", values) == (pytest.approx(2 / 3), True)


def test_the_table_marks_missed_targets_and_names_other_variants():
    values = {"baseline": Spread(3.0, 2.5, 3.5), "product": Spread(0.5, 0.5, 0.5), "floor": Spread(0.4, 0.4, 0.4),
              "TF32": Spread(2.0, 2.0, 2.0)}
    row = Row("work", None, tuple(values), ["baseline/product >= 2.3", "product/floor <= 1.15", "TF32/product"])
    assert table([(row, values)]).splitlines()[-1] == (
        "| work | 3 s | 500 ms | 400 ms | 6.00, 1.25, 4.00 | baseline/product >= 2.3, product/floor <= 1.15 (missed), "
        "TF32/product | baseline 2.5 s..3.5 s, TF32 2 s, 2 s..2 s |")
    memory = Row("memory", None, ("product",), ["product <= 64"], unit="MiB")
    assert table([(memory, {"product": Spread(0.5, 0.5, 0.5)})]).splitlines()[-1] == (
        "| memory | - | 0.5 MiB | - | 0.50 | product <= 64 | - |")


def counted(inputs, variant, start):
    """`Row.prepare` of the next tests, in another process."""
    numbers = list(range(start, 100))

    def work():
        print("not in the table")
        if numbers[0] == 99:
            os._exit(1)
        return float(numbers.pop(0)) if numbers[0] != 98 else numbers.pop(0) / 0
    return work, 1


def test_work_of_another_process_is_prepared_once_and_its_end_is_told(inputs, capfd):
    with process(counted, inputs, "product", {"start": 96}) as work:
        assert [work() for _ in range(2)] == [96, 97]
        with pytest.raises(ZeroDivisionError):
            work()
        for _ in range(2):
            with pytest.raises(BrokenProcessPool):
                work()
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_a_figure_that_is_no_time_is_taken_once(inputs):
    row = Row("row", counted, ("product", "floor"), (), {"start": 7}, "MiB")
    assert measure(row, inputs, 3) == {"product": Spread(7, 7, 7), "floor": Spread(7, 7, 7)}


def slept(inputs, variant):
    """The same: eight units of work in one call, which take 0.2 s or, the first time, longer."""
    import time
    waits = iter([1.0, 0.2, 0.2])
    return lambda: time.sleep(next(waits)), 8


def test_seconds_are_divided_by_the_units_of_work(inputs):
    (found,) = measure(Row("row", slept, ("product",), ()), inputs, 2).values()
    assert 0.2 / 8 <= found.low <= found.median <= found.high < 1.0 / 8


def allocated(inputs, variant, mebibytes):
    """The same."""
    def allocate():
        return torch.zeros(mebibytes * 2**20, dtype=torch.uint8).fill_(1)
    allocate()  # an earlier peak, which is not counted
    return lambda: added_peak(lambda: torch.zeros(96 * 2**20, dtype=torch.uint8).fill_(1)), 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_the_work(inputs):
    held = torch.ones(2**29, dtype=torch.uint8)  # a peak of this process is none of the other's
    with process(allocated, inputs, "product", {"mebibytes": 400}) as work:
        assert 90 <= work() < 96 + 64 and held[0]


def test_a_round_without_a_network_runs_over_many_names_of_few_files(tmp_path):
    inputs = Inputs(tmp_path, QUICK)
    for variant in ("baseline", "product"):
        assert labelling.round_memory(inputs, variant)[0]() >= 0
    for folder, count in (("baseline10", 10), ("baseline40", 40), ("product10", 10), ("product30", 30)):
        labels = list((tmp_path / folder / "data/cityscapes/gtFine/train").rglob("*.png"))
        assert len(labels) == count and len({os.stat(path).st_ino for path in labels}) == 1
        assert len([p for p in (tmp_path / folder).rglob("*.png") if "plabel" in str(p) or "plain" in str(p)]) == count


def test_growth_of_one_axis_leaves_the_others_at_their_middle():
    assert FULL.grown("images", 16) == (16, 20, 512, 16) and FULL.grown("classes", 10) == (8, 10, 512, 10)
    assert FULL.grown("sides", 256) == (8, 20, 256, 256**2)


@pytest.mark.slow
def test_entry_runs_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "bench", "losses", "head", "--device", "cpu", "--quick", "--markdown",
               tmp_path / "t.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [line.split(",")[0] for line in lines[2:]] == ["| losses of an LD step", "| head of the network"]
    assert (tmp_path / "t.md").read_text() == (
        f"`python -m bench losses head --device cpu --quick`\n\n{done.stdout}")


def test_a_gpu_has_no_row_of_its_own():
    cpu, gpu = (rows(FULL, device) for device in ("cpu", "cuda"))
    assert set(gpu) == {"round", "validation", "step", "keys", "reading", "torchrun"} < set(cpu)
    assert {row.prepare for found in gpu.values() for row in found} < {row.prepare for found in cpu.values()
                                                                         for row in found}


@pytest.mark.parametrize("name, index", [("round", 0), ("validation", 0), ("step", 0), ("step", 1), ("reading", 0)])
def test_rows_of_a_gpu_run_where_there_is_none(inputs, name, index, monkeypatch):
    """Not their figures: that nothing in them breaks unseen. The tensors stay on the CPU."""
    monkeypatch.setattr(loaders, "whole_image_loader", loaders.whole_image_loader)  # put back at the end
    monkeypatch.setattr(labelling, "DECODED", 2)
    monkeypatch.setitem(training.MATRIX, "cpu", 64)
    monkeypatch.setattr(training, "READ", 2)
    row = rows(QUICK, "cuda")[name][index]
    for variant in row.variants:
        work, units = row.prepare(inputs, variant, **row.settings)
        work()
        assert units > 0


@pytest.mark.slow
@pytest.mark.parametrize("index", range(3))
def test_a_group_of_one_process_does_the_same_work(inputs, index):
    row = rows(QUICK, "cpu")["torchrun"][index]
    for variant in row.variants:
        with process(row.prepare, inputs, variant, row.settings) as work:
            assert work() > 0


def test_targets_of_a_gpu_that_are_missed_are_marked():
    """Such as the share of the card's rate: no target is a mere note."""
    values = {"baseline": Spread(155, 155, 155), "product": Spread(60, 60, 60), "TF32": Spread(70, 70, 70),
              "matrices": Spread(6.6, 6.6, 6.6)}
    for row in rows(FULL, "cuda")["step"]:
        assert table([(row, values)]).count("(missed)") == 2  # 155/60 < 3 and 60/6.6 > 5
    assert all(any(" >= " in ratio or " <= " in ratio for ratio in row.ratios)
               for name, found in rows(FULL, "cuda").items() if name != "keys" for row in found)


@pytest.mark.parametrize("words, said", [(["loses"], "unknown row 'loses'"), (["--repeats", "0"], "at least 1"),
                                         (["start", "--device", "cuda"], "unknown row 'start'; on cuda"),
                                         (["--repeats", "x"], "--repeats"), (["--fast"], "--fast")])
def test_wrong_words_are_one_line(capsys, words, said):
    with pytest.raises(SystemExit) as stop:
        entry.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.long
@pytest.mark.slow
def test_every_row_runs(capsys):
    entry.main(["--quick", "--device", "cpu"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    expected = [row.title for found in rows(QUICK, "cpu").values() for row in found]
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == expected
