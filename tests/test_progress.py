"""Progress of a run: bars on a terminal, lines where there is none, and no other output."""
import io
import json
import os
import re
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_machines import BE, LD, ROOT, as_main, prepared, world  # noqa: F401 - fixtures
from test_pipeline import call

import eval as eval_script
import run as run_script
import run_so as run_so_script
from dataset import check
from dataset.toy import write_toy_world
from trainer.loop import Trainer
from utils import progress
from utils.cli import EXIT_STOPPED
from utils.errors import Stopped
from utils.progress import Progress

LINE = re.compile(r"^(?P<title>[\w ]+): (?P<done>\d+)/(?P<total>\d+) (?P<unit>\w+)s(?P<facts>(, \w+ [-+.\w]+)*), "
                  r"(?P<rate>[\d.e+]+) (?P=unit)s/s, (?P<left>(\d+:)?\d\d:\d\d) left$")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """clock[0]: seconds, which pass only where a test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(text):
    return [match for match in map(LINE.match, text.splitlines()) if match]


@pytest.mark.parametrize("screen", [True, False])
@pytest.mark.parametrize("out", [Terminal, io.StringIO])
@pytest.mark.parametrize("error", [Terminal, io.StringIO])
def test_a_bar_needs_a_terminal_and_a_line_comes_where_no_bar_is_seen(monkeypatch, screen, out, error):
    monkeypatch.setattr(sys, "stdout", out())
    monkeypatch.setattr(sys, "stderr", error())
    assert list(Progress(range(7), "thresholds", 2, screen)) == list(range(7))
    bar = screen and error is Terminal
    assert ("thresholds" in sys.stderr.getvalue()) == bar
    if not bar:
        assert sys.stderr.getvalue() == ""
    found = lines(sys.stdout.getvalue())
    assert len(found) == (0 if bar and out is Terminal else 3)
    assert "\r" not in sys.stdout.getvalue() or out is Terminal


@pytest.mark.parametrize("size", [(0, 0), (0, 80), (24, 80), (1, 40)])
def test_a_bar_shows_on_a_terminal_of_any_size_and_needs_no_thread(monkeypatch, size):
    """Serial consoles, `ssh -tt` and containers have terminals that do not know their size."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with open(its, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        threads = set(threading.enumerate())
        for _ in Progress(range(3), "reading", 1, True):
            assert set(threading.enumerate()) <= threads  # one of before may end
            time.sleep(0.11)
        assert select.select([ours], [], [], 1)[0] and b"2/3" in os.read(ours, 10_000)
    os.close(ours)


def test_a_line_has_count_rate_and_time_left(clock, capsys):
    for _ in Progress(range(10), "validation", 4, False):
        clock[0] += 0.5
    assert capsys.readouterr().out.splitlines() == ["validation: 4/10 images, 2 images/s, 00:03 left",
                                                    "validation: 8/10 images, 2 images/s, 00:01 left"]


def test_steps_of_an_earlier_process_count_but_not_in_the_rate(clock, capsys):
    pace = Progress(range(900), "ld", 0, False, "step", first=100)
    for n, _ in enumerate(pace, 1):
        clock[0] += 4
        if n == 50:
            pace.report(loss="1.250", lr="1.00e-04")
    assert capsys.readouterr().out == "ld: 150/1000 steps, loss 1.250, lr 1.00e-04, 0.25 steps/s, 56:40 left\n"


def test_the_time_before_the_loop_does_not_count(clock, capsys):
    pace = Progress(range(4), "reading", 2, False)
    clock[0] += 1000
    for _ in pace:
        clock[0] += 1
    assert "1 images/s, 00:02 left" in capsys.readouterr().out


def test_what_a_loop_raises_or_leaves_early_closes_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    pace = Progress(range(4), "reading", 2, True)
    with pytest.raises(Stopped):
        for _ in pace:
            raise Stopped("SIGTERM")
    assert pace.bar.disable  # as tqdm marks a closed one


def test_a_line_is_written_at_once(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw), "utf-8"))
    progress.say("round 0")
    assert raw.getvalue() == b"round 0\n"
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)


@pytest.mark.parametrize("screen", ["True", "False"])
def test_training_has_a_line_each_print_freq_steps_and_for_the_last(world, monkeypatch, capfd, screen):  # noqa: F811
    assert call(monkeypatch, run_so_script, f"screen={screen}", "num_steps=10", "print_freq=4", "val=False") == 0
    said = capfd.readouterr()
    found = [m for m in lines(said.out) if m["title"] == "source_only"]
    assert [(m["done"], m["total"], m["unit"]) for m in found] == [(str(n), "10", "step") for n in (1, 5, 9, 10)]
    assert all("loss" in m["facts"] and "lr" in m["facts"] for m in found)
    assert said.err == "" and "it/s" not in said.out and "\r" not in said.out
    events = [json.loads(line) for line in Path("log/tiny/source_only.jsonl").read_text().splitlines()]
    losses = [f"{e['loss']['total']:.3f}" for e in events if e["event"] == "train"]
    assert losses == [m["facts"].split()[2].strip(",") for m in found]


def test_a_resumed_run_counts_on(world, monkeypatch, capsys):  # noqa: F811
    plain, count = Trainer.step, [0]
    def stop_at_second(self, item):
        count[0] += 1
        if count[0] == 2:
            self.interrupt.requested = "SIGTERM"
        return plain(self, item)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop_at_second)
        assert call(patch, run_script, *LD, "epochs=3", "print_freq=1", "round=1") == EXIT_STOPPED
    assert [m["done"] for m in lines(capsys.readouterr().out) if m["title"] == "ld"] == ["1", "2"]
    assert call(monkeypatch, run_script, *LD, "epochs=3", "print_freq=1", "round=1", "--resume") == 0
    found = [m for m in lines(capsys.readouterr().out) if m["title"] == "ld"]
    assert [(m["done"], m["total"]) for m in found] == [(str(n), "6") for n in range(3, 7)]


@pytest.mark.slow
def test_every_long_pass_over_images_has_its_lines(world, monkeypatch, capfd):  # noqa: F811
    def passes(script, *words):
        capfd.readouterr()
        assert as_main(monkeypatch, script, *words, "print_freq=2") == 0
        said = capfd.readouterr()
        assert all(line.startswith(("start.pth: ", "warning: ")) for line in said.err.splitlines())  # eval.py's remarks
        return {m["title"]: [int(other["done"]) for other in lines(said.out) if other["title"] == m["title"]]
                for m in lines(said.out) if m["unit"] == "image"}
    assert passes(run_so_script, "on_bad_sample=skip", "num_steps=1") == {"reading": [2, 4, 6], "validation": [2]}
    assert passes(run_script, *LD, "round=1") == {"thresholds": [2, 4], "pseudo labels": [2, 4], "validation": [2]}
    assert passes(run_script, *BE, "val=False", "round=1") == {"thresholds": [2, 4], "pseudo labels": [2, 4]}
    assert passes(eval_script, "start.pth") == {"start": [2]}
    assert passes(check.main, "--config", "tiny.yml") == {"source_train": [2, 4, 6], "target_train": [2, 4],
                                                          "target_val": [2]}
    capfd.readouterr()
    write_toy_world("other", size=(32, 32), source=100, synthia=0, train=1, val=1)
    assert [m["done"] for m in lines(capfd.readouterr().out)] == ["100"]


def test_numbers_are_read_from_the_device_at_lines_alone(world, monkeypatch):  # noqa: F811
    def items(print_freq):
        count, plain = [0], torch.Tensor.item
        def counted(self):
            count[0] += 1
            return plain(self)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "item", counted)
            assert call(patch, run_so_script, f"print_freq={print_freq}", "num_steps=6", "val=False",
                        "overwrite=true") == 0
        return count[0]
    # The total and one loss, at steps 1 and 6, and at all six.
    assert items(1) - items(100) == 2 * (6 - 2)


@pytest.mark.parametrize("script, words", [
    ("run_so.py", ("tensorboard=true",)), pytest.param("run.py", (*LD, "tensorboard=true"), marks=pytest.mark.slow)])
def test_a_run_shows_no_library_s_warnings(world, script, words):  # noqa: F811
    """With every warning on that Python would hide."""
    done = subprocess.run([sys.executable, "-W", "default", str(ROOT / script), "--config", "tiny.yml", "screen=true",
                           "worker=1", "round=1", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Warning" not in done.stdout + done.stderr and done.stderr == ""
