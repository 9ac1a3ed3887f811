"""Machines that are not a desktop: little or no shared memory, readers that are killed or stuck, file systems without
locks or sync, any output encoding, any working directory, `~` in paths."""
import contextlib
import errno
import faulthandler
import fcntl
import io
import json
import multiprocessing
import multiprocessing.synchronize
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_pipeline import TINY, call, weights
from tiers import mostly_slow

import eval as eval_script
import run as run_script
import run_so as run_so_script
from dataset import check, files, views
from dataset.loaders import ReadingLoader
from dataset.toy import write_toy_world
from dataset.toy.__main__ import main as toy_main
from trainer.loop import Trainer
from utils import checkpoint, cli, memory, processes
from utils.cli import EXIT_STOPPED
from utils.config import load_config
from utils.config_keys import KEYS, SECTION_KEYS
from utils.config_values import expanded
from utils.errors import CheckpointError, ConfigError, DataError, Stopped, UserError
from utils.interrupt import SIGNALS, Interrupt, waiting
from utils.logger import RunLog
from utils.processes import map_in_order

ROOT = Path(__file__).parent.parent
LD = ("method=ld", "init_weight=start.pth")
BE = ("method=be", "init_weight=start.pth")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the tiny world, its configuration and the weights of a stage 0."""
    root = tmp_path_factory.mktemp("machines")
    write_toy_world(root / "world", seed=5, size=(128, 64), source=6, synthia=0, train=4, val=2)
    (root / "tiny.yml").write_text(yaml.safe_dump({**TINY, "tensorboard": False, "print_freq": 100}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert call(patch, run_so_script) == 0
    shutil.move(root / "snapshot/tiny/source_only.pth", root / "start.pth")
    for folder in ("snapshot", "log", "miou_result"):
        shutil.rmtree(root / folder)
    return root


@pytest.fixture
def world(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return Path(".")


@contextlib.contextmanager
def within(seconds):
    """Assert that the block ends within that time, which is for waits without end, and leaves no process behind."""
    start = time.monotonic()
    try:
        yield
    finally:
        assert time.monotonic() - start < seconds
        require_no_children()


def require_no_children():
    """Assert that the processes that this one has started end soon."""
    end = time.monotonic() + 10
    while multiprocessing.active_children():
        assert time.monotonic() < end, "a process is still there"
        time.sleep(0.02)


@contextlib.contextmanager
def signal_after(seconds, number):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


# --- what travels between processes ---------------------------------------------------------------------------------

def values():
    rng = np.random.default_rng(0)
    for dtype in ("uint8", "int16", "int64", "float32", "float64", "bool"):
        for shape in ((), (0,), (3,), (2, 0, 4), (5, 7, 3)):
            yield (rng.random(shape) * 200).astype(dtype)
    yield np.arange(24).reshape(4, 6)[::2, ::-1]
    yield np.asfortranarray(np.arange(24).reshape(4, 6))
    yield rng.integers(0, 255, (1500, 1500, 3), dtype=np.uint8)  # far beyond a socket's buffer
    yield "text \u00fc \udcff"
    yield None


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.equal(b) and not b.is_shared()
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    return a == b


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_come_in_order_and_whole_whatever_they_are(count):
    given = [{"array": v, "tensor": torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else None, "n": n}
             for n, v in enumerate(values())]
    with within(30):
        found = list(map_in_order(lambda n: given[n], range(len(given)), count))
    assert len(found) == len(given) and all(same(a, b) for a, b in zip(given, found))
    for item in found:  # training writes into what it reads
        if item["tensor"] is not None:
            item["tensor"].zero_()


@pytest.mark.parametrize("count", [0, 2])
def test_calls_are_made_a_little_ahead_and_no_further(count, tmp_path):
    items = map_in_order(lambda n: (tmp_path / str(n)).touch(), range(100), count)
    next(items), time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) <= 1 + 2 * count
    items.close()
    require_no_children()


class Odd(Exception):
    """Does not survive pickling."""

    def __init__(self, a, b):
        super().__init__(a + b)


@pytest.mark.parametrize("error, kind, said", [
    (DataError("a.png: bad"), DataError, "^a.png: bad$"), (ValueError("deep"), ValueError, "^deep$"),
    (MemoryError(), MemoryError, "^$"), (Odd("o", "dd"), RuntimeError, "^Odd: odd$")])
@pytest.mark.parametrize("count", [1, 2])
def test_errors_arrive_as_they_were_raised(error, kind, said, count):
    def read(n):
        if n == 5:
            raise error
        return n
    found = []
    with within(30), pytest.raises(kind, match=said) as caught:
        for n in map_in_order(read, range(10), count):
            found.append(n)
    assert found == [0, 1, 2, 3, 4]
    # A user's error needs no traceback; of any other, --debug shows where in the reader it arose.
    assert ("in read" in str(caught.value.__cause__)) == (kind is not DataError)


class Unreadable:
    def __reduce__(self):
        return int, ("x",)


@pytest.mark.parametrize("answer, kind, said", [(lambda: 0, Exception, "(?i)pickle"),
                                                (Unreadable(), ValueError, "int")])
def test_an_answer_that_cannot_travel_is_an_error_too(capfd, answer, kind, said):
    with within(30), pytest.raises(kind, match=said):
        list(map_in_order(lambda n: answer, range(3), 1))
    assert capfd.readouterr().err == ""


@pytest.fixture
def no_shared_memory(monkeypatch):
    """What a /dev/shm without a free byte does: no semaphore, no shared tensor."""
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", full)
    for owner in (torch.UntypedStorage, torch.TypedStorage):
        for name in ("_share_fd_cpu_", "_share_filename_cpu_", "_new_shared", "_new_using_fd_cpu", "share_memory_"):
            if hasattr(owner, name):
                monkeypatch.setattr(owner, name, full)


@pytest.mark.slow
def test_no_shared_memory_is_needed(world, monkeypatch, no_shared_memory):
    assert call(monkeypatch, run_so_script, "worker=2", "note=a", "on_bad_sample=skip") == 0
    assert call(monkeypatch, run_script, *LD, "worker=2", "note=a") == 0
    assert check.main(["--config", "tiny.yml", "worker=2"]) == 0
    write_toy_world("other", size=(32, 32), source=140, synthia=0, train=1, val=1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("unshare")
                    or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
                    reason="mounting needs root")
@pytest.mark.parametrize("mount", [
    "mount -t tmpfs -o size=2m tmpfs /dev/shm", "mount -t tmpfs -o size=4k tmpfs /dev/shm; head -c 4096 /dev/zero "
    "> /dev/shm/full", "mount -t tmpfs -o ro tmpfs /dev/shm"])
def test_a_small_full_or_read_only_dev_shm_does_not_matter(world, mount):
    words = [sys.executable, str(ROOT / "run.py"), "--config", "tiny.yml", *LD, "worker=2", "crop_tgt=512"]
    done = subprocess.run(["unshare", "-m", "bash", "-c", f'{mount}; "$@"', "-", *words], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr


# --- readers that end ------------------------------------------------------------------------------------------------

def die(number):
    faulthandler.disable()  # of the test runner
    os.kill(os.getpid(), number)


ENDS = {
    signal.SIGKILL: ("SIGKILL", "memory"), signal.SIGBUS: ("SIGBUS", "decoder", "replace the file"),
    signal.SIGSEGV: ("SIGSEGV", "decoder", "replace the file"), signal.SIGABRT: ("SIGABRT", "decoder"),
    signal.SIGILL: ("SIGILL",), None: ("exit code 3",),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("end", ENDS)
def test_a_reader_that_ends_is_said_with_what_it_read(end, count):
    def read(n):
        if n == 4:
            die(end) if end else os._exit(3)
        return np.full((300, 300), n)
    with within(30), pytest.raises(UserError) as caught:
        found = []
        for item in ReadingLoader(read, range(9), count, lambda n: f"image{n}.png"):
            found.append(item[0, 0])
    assert found == [0, 1, 2, 3]
    for word in ("image4.png", "worker", *ENDS[end]):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("halfway", [False, True])
def test_a_reader_killed_from_outside_or_in_the_middle_of_its_answer(halfway, monkeypatch):
    """The caller must not wait for the rest of an answer that is cut off."""
    plain = processes._send
    def half(end, parts):
        if multiprocessing.parent_process() and processes.pickle.loads(parts[0])[0] == 3:
            end.sendall(np.array([1, 1000], "<u8").tobytes() + b"half")
            os.kill(os.getpid(), signal.SIGSTOP)
        plain(end, parts)
    if halfway:
        monkeypatch.setattr(processes, "_send", half)
    items = map_in_order(lambda n: n, range(1000), 2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with within(30), pytest.raises(UserError, match="SIGKILL"):
        list(items)


@pytest.mark.parametrize("script, words, patched", [
    (run_so_script, (), views.TrainingCrops), (run_script, LD, views.WholeImages), (run_script, LD, views.WholeLabels),
    (run_script, BE, views.TrainingCrops), (run_so_script, ("on_bad_sample=skip",), None)])
def test_a_stage_whose_reader_is_killed_ends_with_one_line(world, monkeypatch, capfd, script, words, patched):
    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    if patched:
        monkeypatch.setattr(patched, "__getitem__", killed)
    else:
        monkeypatch.setattr("dataset.segmentation.read_image", killed)
    with within(30):
        assert call(monkeypatch, script, *words, "worker=1") == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    for word in ("world/", ".png", "SIGKILL", "memory", "worker"):
        assert word in error


@pytest.mark.parametrize("where, number", [("os.fork", errno.EAGAIN), ("os.fork", errno.ENOMEM),
                                           ("socket.socketpair", errno.EMFILE), ("socket.socketpair", errno.ENFILE),
                                           ("threading.Thread.start", None)])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_reader_that_cannot_be_started(world, monkeypatch, capfd, where, number, nth):
    owner, name = {"os": os, "socket": processes.socket, "threading": threading.Thread}[where.split(".")[0]], \
        where.rsplit(".", 1)[1]
    plain, count = getattr(owner, name), [0]
    def fails(*arguments):
        count[0] += 1
        if count[0] >= nth:
            raise OSError(number, os.strerror(number)) if number else RuntimeError("can't start new thread")
        return plain(*arguments)
    monkeypatch.setattr(owner, name, fails)
    with within(30):
        assert cli.guarded(lambda: list(map_in_order(str, range(9), 2))) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "worker=0" in error and "ulimit" in error
    assert (os.strerror(number) if number else "can't start new thread") in error


# --- a signal ends a wait for data -----------------------------------------------------------------------------------

def for_ever(*_):
    while True:
        time.sleep(60)


def swallowing(*_):
    """Swallows what is raised in it, as some decoders do."""
    try:
        for_ever()
    except Exception:
        raise DataError("damaged") from None


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("read", [for_ever, swallowing])
def test_any_signal_ends_a_wait(number, count, read):
    before = signal.getsignal(number)
    with within(30), pytest.raises(Stopped, match=number.name), Interrupt(), signal_after(0.15, number):
        list(ReadingLoader(read, range(3), count))
    assert signal.getsignal(number) == before
    time.sleep(0.02)  # the timer has fired: nothing is left over for the next test


def test_a_signal_before_a_wait_ends_it_and_outside_it_is_only_noted():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert interrupt.requested == "SIGTERM"
        with pytest.raises(Stopped), waiting():
            for_ever()
    with waiting():  # without an Interrupt it has no say
        pass


def test_stopped_readers_end_a_wait_too():
    """SIGSTOP stands for a disk that no longer answers: only SIGKILL ends a process that reads from it."""
    with within(30), pytest.raises(Stopped), Interrupt(), contextlib.ExitStack() as stack:
        for n, _ in enumerate(ReadingLoader(lambda n: n, range(1000), 2)):
            if n == 3:
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGSTOP)
                stack.enter_context(signal_after(0.3, signal.SIGTERM))


PLACES = {  # where a run waits -> (stage, class whose reading gets stuck, at which call, worker)
    "first crop": (run_so_script, (), views.TrainingCrops, 1), "crop": (run_so_script, (), views.TrainingCrops, 6),
    "validation": (run_so_script, (), views.WholeImages, 2), "thresholds": (run_script, LD, views.WholeImages, 3),
    "accuracy": (run_script, LD, views.WholeLabels, 2), "crop of a round": (run_script, BE, views.TrainingCrops, 3),
    "second round": (run_script, BE, views.TrainingCrops, 7),
}
QUICK = "validation", "thresholds", "crop of a round"  # one of each kind


@pytest.mark.parametrize("place, worker", [
    pytest.param(place, worker, marks=[] if worker and place in QUICK else pytest.mark.slow)
    for place in PLACES for worker in (0, 1)])
def test_a_run_stopped_in_a_wait_goes_on_to_the_same_bits(world, monkeypatch, capfd, place, worker):
    script, words, view, nth = PLACES[place]
    number = SIGNALS[(len(place) + worker) % len(SIGNALS)]
    stage = "source_only" if script is run_so_script else words[0].removeprefix("method=")
    assert call(monkeypatch, script, *words, "note=whole") == 0
    plain = view.__getitem__
    calls = multiprocessing.get_context("fork").RawValue("i", 0)  # counts in a reader, shows here
    def stuck(self, key):
        calls.value += 1
        if calls.value == nth:
            os.kill(os.getppid() if multiprocessing.parent_process() else os.getpid(), number)
            for_ever()
        return plain(self, key)
    capfd.readouterr()
    with monkeypatch.context() as patch, within(30):
        patch.setattr(view, "__getitem__", stuck)
        assert call(patch, script, *words, f"worker={worker}", "save_freq=100") == EXIT_STOPPED
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and number.name in error and "--resume" in error
    assert call(monkeypatch, script, *words, "--resume") == 0
    a, b = weights(f"snapshot/whole/{stage}.pth"), weights(f"snapshot/tiny/{stage}.pth")
    assert all(a[k].equal(b[k]) for k in a)
    whole, resumed = ([{**event, "seconds": 0}
                       for event in map(json.loads, Path(f"log/{note}/{stage}.jsonl").read_text().splitlines())
                       if event["event"] not in ("machine", "cost")] for note in ("whole", "tiny"))
    assert whole == resumed


def test_a_signal_whose_exception_is_lost_ends_a_wait_all_the_same():
    """Python ignores exceptions in the hooks of a fork and in destructors."""
    with within(30), pytest.raises(Stopped, match="SIGTERM"), Interrupt() as interrupt:
        threading.Timer(0.3, lambda: setattr(interrupt, "requested", "SIGTERM")).start()
        list(ReadingLoader(for_ever, range(3), 1))


def test_a_long_wait_is_said_with_what_is_waited_for(monkeypatch, capsys):
    plain, said = processes.say, []

    def say(text, **named):
        plain(text, **named)
        said.append(text)
        if len(said) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(processes, "_PATIENCE", 0.1)
    monkeypatch.setattr(processes, "say", say)
    with within(30), pytest.raises(Stopped), Interrupt():
        list(ReadingLoader(for_ever, range(3), 1, lambda n: f"image{n}.png"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("image0.png" in line for line in lines) and "for 0.2 s" in lines[1]


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_every_way_to_start_a_process_will_do(monkeypatch, method):
    """Newer Pythons no longer fork by default."""
    monkeypatch.setattr(processes.multiprocessing, "Process", multiprocessing.get_context(method).Process)
    with within(30):
        assert list(map_in_order(np.arange, range(5), 1))[4].tolist() == [0, 1, 2, 3]


def test_a_stop_saves_even_if_the_images_are_gone(world, monkeypatch, capfd):
    """Saving a state does not read from the disk of the data."""
    plain = Trainer.step
    def gone(self, item):
        shutil.rmtree("world")
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, item)
    with monkeypatch.context() as patch:
        shutil.copytree("world", "kept")
        patch.setattr(Trainer, "step", gone)
        assert call(patch, run_script, *LD, "val=False") == EXIT_STOPPED
    shutil.move("kept", "world")
    assert call(monkeypatch, run_script, *LD, "val=False", "--resume") == 0


@pytest.mark.slow
def test_a_process_with_stopped_readers_ends_on_a_signal_and_leaves_none(world):
    words = [sys.executable, ROOT / "run_so.py", "--config", "tiny.yml", "worker=2", "num_steps=100000", "val=False",
             "print_freq=1"]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while "1/100000 steps" not in run.stdout.readline():
            assert run.poll() is None
        readers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert readers
        for pid in readers:
            os.kill(int(pid), signal.SIGSTOP)
        time.sleep(0.5)
        start = time.monotonic()
        run.send_signal(signal.SIGTERM)
        error = run.communicate(timeout=60)[1]
        assert time.monotonic() - start < 30 and run.returncode == EXIT_STOPPED, error
        assert error.count("\n") == 1 and "its state is in" in error
        end = time.monotonic() + 10
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < end:
                os.killpg(run.pid, 0)
                time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def test_readers_do_not_outlive_a_killed_run():
    """Readers end when the other end of their socket is closed; later readers hold copies of earlier sockets."""
    code = ("import sys, time; sys.path.insert(0, sys.argv[1])\nimport multiprocessing\n"
            "from utils.processes import map_in_order\n"
            "a, b = map_in_order(str, range(9), 2), map_in_order(str, range(9), 2)\nnext(a), next(b)\n"
            "print(*[c.pid for c in multiprocessing.active_children()], flush=True); time.sleep(60)")
    run = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE, text=True)
    readers = run.stdout.readline().split()
    run.kill()
    run.wait()
    assert len(readers) == 4
    end = time.monotonic() + 30
    def alive(pid):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        return False
    while any(map(alive, readers)):
        assert time.monotonic() < end, "a reader is still there"
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="on other systems a stuck reader ends with its read")
def test_stuck_readers_do_not_outlive_a_killed_run():
    code = ("import sys, time, os; sys.path.insert(0, sys.argv[1])\nimport multiprocessing, signal\n"
            "from utils.processes import map_in_order\npids = set()\n"
            "a = map_in_order(lambda n: (time.sleep(0.02), os.getpid())[1], range(9999), 2)\n"
            "while len(pids) < 2: pids.add(next(a))\n"
            "for pid in pids: os.kill(pid, signal.SIGSTOP)\nprint(*pids, flush=True); time.sleep(60)")
    run = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE, text=True)
    readers = run.stdout.readline().split()
    run.kill()
    try:
        assert len(readers) == 2 and run.communicate(timeout=30)[0] == ""  # end of file: no process has it open
    finally:
        for pid in readers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from utils import cli
from utils.processes import map_in_order
number, times = int(sys.argv[2]), int(sys.argv[3])
def read(n):
    if n == 5:
        os.kill(os.getppid(), number)
        os.kill(os.getpid(), signal.SIGSTOP)
def main():
    try:
        list(map_in_order(read, range(9), 1))
    finally:
        if times == 2:
            os.kill(os.getpid(), number)
            time.sleep(60)
cli.leave(cli.guarded(main))
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_what_has_nothing_to_save_in_order_and_a_second_at_once(number, times):
    """Before training, in eval.py and dataset.check: whatever is read, or stuck."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(ROOT), str(int(number)), str(times)], capture_output=True,
                          text=True, timeout=20)
    if times == 1 or number == signal.SIGINT:  # a second Ctrl-C raises KeyboardInterrupt again
        assert (done.returncode, done.stderr) == (130, "stopped: what had been saved before is kept\n")
    else:
        assert done.returncode == -number


def test_guarded_leaves_signals_as_they_were(capsys):
    before = [signal.getsignal(number) for number in SIGNALS]
    for number in SIGNALS:
        assert cli.guarded(lambda: (os.kill(os.getpid(), number), time.sleep(1))) == 130
        assert capsys.readouterr().err == "stopped: what had been saved before is kept\n"
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(SystemExit, match="75"):
        cli.leave(75)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # nothing said or answered changes any more
    signal.signal(signal.SIGINT, before[0])


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_pipe_among_the_files_is_not_waited_for(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.png").symlink_to("pipe")
    with within(30), pytest.raises(DataError, match="a.png: cannot be read as an? .*not a file"):
        (files.read_image if kind == "image" else files.read_label_ids)(tmp_path / "a.png")


# --- memory, processes and disks that are full ----------------------------------------------------------------------

@pytest.mark.parametrize("error", [
    MemoryError(), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "a.png"), RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                 "to allocate 8 bytes. Error code 12 (Cannot allocate memory)")])
def test_too_little_memory_is_one_line_from_any_source(capsys, error):
    def main():
        raise error
    assert cli.guarded(main) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: memory is full") and "ulimit" in said


@pytest.mark.parametrize("total", ["", "total_"])
@pytest.mark.parametrize("limit, free", [("8000000", 3000000), ("max", None)])
def test_files_that_a_container_has_read_take_no_memory_away(tmp_path, monkeypatch, limit, free, total):
    paths = [tmp_path / name for name in ("limit", "use", "statistics")]
    texts = (limit, "7000000", f"{total}inactive_file 1500000\n{total}active_file 500000\ninactive_file 1\nfile 9\n")
    for path, text in zip(paths, texts):
        path.write_text(text)
    before = memory.available_memory()
    monkeypatch.setattr(memory, "_GROUPS", ((*map(str, paths), total),))
    assert memory.available_memory() == free if free else memory.available_memory() > before // 2


def test_a_full_disk_is_named_wherever_it_is_met(world, monkeypatch, capsys):
    full = failing(errno.ENOSPC)
    def refused(patched, *run):
        with monkeypatch.context() as patch:
            patch.setattr(*patched)
            assert as_main(monkeypatch, *run) == 2
        said = capsys.readouterr().err
        assert said.splitlines()[-1].startswith("error: ") and os.strerror(errno.ENOSPC) in said
        return said.splitlines()[-1]
    assert "plabel/tiny/ld/round0/" in refused((Path, "write_bytes", full), run_script, *LD)
    text = Path.write_text

    def partial(path, *words, **more):
        return full() if path.suffix == ".json" else text(path, *words, **more)
    assert "error: s.json: " in refused((Path, "write_text", partial), eval_script, "start.pth", "--json", "s.json")
    assert "error: f.png: " in refused(("PIL.Image.Image.save", full), eval_script, "start.pth", "--figure", "f.png")
    toy = ("--root", "t", "--size", "32", "32", "--source", "1", "--train", "1", "--val", "1", "--synthia", "0")
    assert "error: t/gta5/images/00001.png: " in refused(("PIL.Image.Image.save", full), toy_main, *toy)


def test_a_full_disk_below_tensorboard_is_one_warning(world, monkeypatch, capfd):
    """The error is raised in TensorBoard's own thread."""
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", failing(errno.ENOSPC))
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # which prints
    assert call(monkeypatch, run_so_script, "tensorboard=true", "print_freq=1", "val=False") == 0
    said = capfd.readouterr()
    assert said.out.count("TensorBoard's scalars cannot be written") == 1 and said.err == ""


# --- file systems without locks or sync ------------------------------------------------------------------------------

NUMBERS = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EIO, errno.EBADF, errno.EACCES, errno.EPERM,
           errno.ENOLCK, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EAGAIN, errno.EINTR, errno.ESTALE,
           errno.ETIMEDOUT]
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))
    return fail


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_only_held_by_another_means_in_use(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "lockf", failing(number))
    if number in (errno.EACCES, errno.EAGAIN):
        with pytest.raises(ConfigError, match="in use by another process"):
            checkpoint.RunLock(tmp_path)
        return
    lock = checkpoint.RunLock(tmp_path)
    assert os.strerror(number) in lock.remark and str(tmp_path) in lock.remark and "second process" in lock.remark
    lock.release()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EOPNOTSUPP, errno.EINVAL], ids=errno.errorcode.get)
def test_a_lock_file_that_cannot_be_opened_is_no_lock_of_another(tmp_path, monkeypatch, number):
    monkeypatch.setattr("builtins.open", failing(number))
    lock = checkpoint.RunLock(tmp_path)
    assert os.strerror(number) in lock.remark
    lock.release()


def test_a_lock_that_works_needs_no_remark(tmp_path):
    lock = checkpoint.RunLock(tmp_path)
    assert lock.remark is None
    lock.release()


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("of", ["folder", "opening the folder", "file"])
def test_sync_is_asked_for_and_not_insisted_upon(tmp_path, monkeypatch, of, number):
    path = tmp_path / "state"
    path.write_bytes(b"old")
    plain_sync, plain_open, asked = os.fsync, os.open, []
    def sync(descriptor):
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
        asked.append(kind)
        return failing(number)() if kind == of else plain_sync(descriptor)
    def opened(name, *arguments):
        return failing(number)() if of == "opening the folder" else plain_open(name, *arguments)
    monkeypatch.setattr(checkpoint.os, "fsync", sync)
    monkeypatch.setattr(checkpoint.os, "open", opened)
    allowed = UNSUPPORTED if of == "file" else UNSUPPORTED | {errno.EIO, errno.EBADF, errno.EACCES, errno.EPERM}
    if number in allowed:
        checkpoint.write_atomically(path, lambda file: file.write(b"new"))
        assert path.read_bytes() == b"new"
    else:
        with pytest.raises(CheckpointError, match=os.strerror(number)):
            checkpoint.write_atomically(path, lambda file: file.write(b"new"))
        assert path.read_bytes() == (b"old" if of == "file" else b"new")
    assert "file" in asked and [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_stage_runs_without_locks_or_folder_sync(world, monkeypatch, capsys):
    plain = os.fsync
    monkeypatch.setattr(fcntl, "lockf", failing(errno.ENOLCK))
    monkeypatch.setattr(os, "fsync", lambda fd: failing(errno.EINVAL)() if os.path.isdir(f"/proc/self/fd/{fd}") else
                        plain(fd))
    assert call(monkeypatch, run_so_script, "save_freq=2") == 0
    said = capsys.readouterr()
    warnings = [line for line in said.out.splitlines() if line.startswith("warning: ") and "never seen" not in line]
    assert len(warnings) == 1 and "cannot be locked" in warnings[0] and said.err == ""


def test_files_that_cannot_be_removed_end_no_run(world, monkeypatch):
    plain = Path.unlink
    def unlink(self, missing_ok=False):
        if self.suffix == ".pth" or self.suffix == ".tmp":
            failing(errno.EBUSY)()
        return plain(self, missing_ok)
    monkeypatch.setattr(Path, "unlink", unlink)
    assert call(monkeypatch, run_so_script, "save_freq=2", "keep=1") == 0
    assert call(monkeypatch, run_so_script, "--resume") == 0  # finished, whatever states are left


def test_a_log_or_a_board_that_cannot_be_written(world, monkeypatch, capsys):
    from torch.utils.tensorboard import SummaryWriter
    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "add_scalar", failing(errno.ENOSPC))
        assert call(patch, run_so_script, "tensorboard=true", "print_freq=1") == 0
    said = capsys.readouterr()
    assert said.out.count("TensorBoard's scalars cannot be written") == 1 and said.err == ""
    log = RunLog("log", "full", False)
    log._events = open("/dev/full", "w", encoding="utf-8")
    with pytest.raises(UserError, match="No space left"):
        log.event("train", 1, loss=1.0)
    log.close()


# --- what is printed, and where ---------------------------------------------------------------------------------------

OWN = {"type": "folder", "images": "images/{split}", "labels": "labels/{split}", "input_size": [64, 32],
       "classes": ["caf\u00e9 \u2603", "\u8def", "pr\u016fjezd"]}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A data set with names of classes and files that no 8-bit encoding can write; one of them no encoding at all."""
    from PIL import Image
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "\u8def\u2603", os.fsdecode(b"b\xff")):
            image, label = rng.integers(0, 255, (32, 64, 3)), rng.integers(0, 3, (32, 64))
            for kind, pixels in (("images", image), ("labels", label)):
                path = Path(f"d\u00e9/{kind}/{split}/{name}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    Path("tiny.yml").write_text(yaml.safe_dump({
        **TINY, "source": "own", "target": "own", "num_classes": 3, "note": "\u8def", "neg_rank_width": 0,
        "num_steps": 2, "round": 1, "tensorboard": False, "print_freq": 1, "own": {**OWN, "data_dir": "d\u00e9"}}))
    return tmp_path


def as_main(monkeypatch, script, *words):
    """A script's exit code, as its command line gives it."""
    if script in (run_script, run_so_script):
        return call(monkeypatch, script, *words)
    if script is eval_script:
        monkeypatch.setattr(sys, "argv", ["eval.py", "--config", "tiny.yml", *words])
        return eval_script.run()
    return script(list(words))


@pytest.mark.parametrize("encoding", mostly_slow(["ascii", "latin-1", "utf-8", "cp1252"]))
def test_any_encoding_takes_all_that_is_printed(own, monkeypatch, encoding):
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, name, streams[name])
    start = "snapshot/\u8def/source_only.pth"
    assert as_main(monkeypatch, run_so_script) == 0
    assert as_main(monkeypatch, run_script, *LD[:1], f"init_weight={start}") == 0
    assert as_main(monkeypatch, eval_script, start, "--json", "\u8def.json", "--figure", "f.png") == 0
    assert as_main(monkeypatch, check.main, "--config", "tiny.yml") == 0
    Path(os.fsdecode("d\u00e9/images/train/".encode() + b"b\xff.png")).write_bytes(b"")
    assert as_main(monkeypatch, check.main, "--config", "tiny.yml") == 1
    assert as_main(monkeypatch, run_so_script, "note=x", "on_bad_sample=skip") == 0
    assert as_main(monkeypatch, run_so_script, "note=x", "num_steps=20") == 2
    assert as_main(monkeypatch, toy_main, "--root", os.fsdecode(b"t\xff\xe8"), "--size", "32", "32", "--source", "1",
                   "--train", "1", "--val", "1", "--synthia", "0") == 0
    for name, stream in streams.items():
        stream.flush()
        text = stream.buffer.getvalue().decode(encoding)
        assert "b\\udcff.png" in text or name == "stdout" and "t\\udcff" in text
    road = "\u8def" if encoding == "utf-8" else "\\u8def"
    assert road in streams["stdout"].buffer.getvalue().decode(encoding)


SCRIPTS = {"run.py": (), "run_so.py": (), "eval.py": (), "dataset.check": ("-m",), "dataset.toy": ("-m",)}


def started(script, *words, shell="{}", **named):
    command = [sys.executable, *SCRIPTS[script], script if SCRIPTS[script] else str(ROOT / script), *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **named.pop("env", {})}
    return subprocess.run(["bash", "-c", shell.format('"$@"'), "-", *command], capture_output=True, text=True, env=env,
                          timeout=120, errors="replace", **named)


@pytest.mark.parametrize("script", mostly_slow(SCRIPTS))
def test_help_on_a_plain_c_machine_into_a_pipe_that_closes_early(script, tmp_path):
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    early = "{} | (read -r line; echo \"$line\"); exit ${{PIPESTATUS[0]}}"
    done = started(script, "--help", env=env, cwd=tmp_path, shell=early)
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and done.stderr == ""


@pytest.mark.parametrize("shell", [pytest.param("{} >&-", marks=pytest.mark.slow), "{} >&- 2>&- <&-",
                                   pytest.param("{} >/dev/full 2>&1", marks=pytest.mark.slow),
                                   pytest.param("{} | true; exit ${{PIPESTATUS[0]}}", marks=pytest.mark.slow)])
def test_a_run_goes_on_when_its_output_is_not_read(world, shell):
    done = started("run_so.py", "--config", "tiny.yml", "num_steps=2", "print_freq=1", "val=False", shell=shell)
    assert done.returncode == 0 and done.stderr == "" and done.stdout == ""
    events = [json.loads(line) for line in Path("log/tiny/source_only.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "train"] == [1, 2]  # no file has become standard output


def test_the_configuration_beside_the_scripts_is_the_default_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_so.py"])
    assert cli.run_stage("", "config/so_config.yml", run_so_script.run, method="source_only") == 2
    assert "gta5.data_dir: no folder 'data/gta5'" in capsys.readouterr().err
    Path("config").mkdir()
    Path("config/so_config.yml").write_text("gta5: {data_dir: mine}")
    assert cli.run_stage("", "config/so_config.yml", run_so_script.run, method="source_only") == 2
    assert "no folder 'mine'" in capsys.readouterr().err


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for script in (run_so_script, run_script, eval_script, check.main):
        assert as_main(monkeypatch, script, "x.pth" if script is eval_script else "worker=0") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "working directory is gone" in error
    os.chdir(tmp_path)


@pytest.mark.slow
def test_a_run_without_home_or_user(world, tmp_path):
    """No HOME, no USER, and a uid that no one has."""
    (tmp_path / "sitecustomize.py").write_text("import pwd\ndef unknown(*_): raise KeyError('uid not found')\n"
                                               "pwd.getpwuid = pwd.getpwnam = unknown\n")
    command = ["env", "-i", f"PYTHONPATH={tmp_path}", "OMP_NUM_THREADS=1", sys.executable, str(ROOT / "run_so.py"),
               "--config", "tiny.yml", "tensorboard=true", "num_steps=1", "worker=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    done = subprocess.run([*command, "log=~/log"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "log: '~/log': the home folder ~ is not known" in done.stderr


# --- home folders ---------------------------------------------------------------------------------------------------

PATH_KEYS = {"method", "model", "init_weight", "restore_from", "snapshot", "result", "log", "plabel"}
SECTION_PATH_KEYS = {"data_dir", "data_list", "data_list_val"}


def test_every_key_that_is_a_path_is_declared_as_one():
    assert {name for name, key in KEYS.items() if key.path} == PATH_KEYS
    assert {name for name, key in SECTION_KEYS.items() if key.path} == SECTION_PATH_KEYS
    for name, key in {**KEYS, **SECTION_KEYS}.items():  # a key yet to come, by its meaning
        if key.kind is str and not key.choices:
            assert key.path or not any(word in key.meaning for word in ("file", "folder of", "checkpoint")), name


@pytest.mark.parametrize("written, read", [
    ("~/x", "{home}/x"), ("~/a b/\u00fc=~", "{home}/a b/\u00fc=~"), ("./~/x", "./~/x"),
    ("~root/x", f"{pwd.getpwnam('root').pw_dir}/x"),
    ("a~/x", "a~/x"), ("/~", "/~")])
@pytest.mark.parametrize("name", sorted(PATH_KEYS | {f"gta5.{name}" for name in SECTION_PATH_KEYS}))
@pytest.mark.parametrize("given", ["word", "file"])
def test_home_folders_in_every_path_key(tmp_path, monkeypatch, name, given, written, read):
    monkeypatch.setenv("HOME", str(tmp_path))
    section, _, inner = name.rpartition(".")
    if name in ("method", "model"):  # a file of one's own, and a name in it
        written, read = f"{written}.py:Mine", f"{read}.py:Mine"
    content = {section: {inner: written}} if section else {name: written}
    (tmp_path / "c.yml").write_text(yaml.safe_dump(content if given == "file" else {}))
    read = read.format(home=tmp_path)
    words = [f"{name}={written}"] if given == "word" else []
    if name == "restore_from":  # declared, but refused
        with pytest.raises(ConfigError, match="restore_from: '" + read):
            load_config("~/c.yml", words)
    elif name in ("method", "model"):  # the file is opened at once, and is not there
        with pytest.raises(ConfigError, match=re.escape(f"{name}: {read.removesuffix(':Mine')}: cannot be read")):
            load_config("~/c.yml", words)
    else:
        cfg = load_config("~/c.yml", words)
        assert getattr(cfg.section(section) if section else cfg, inner) == read


@pytest.mark.parametrize("name", sorted(PATH_KEYS | {f"gta5.{name}" for name in SECTION_PATH_KEYS}))
def test_an_unknown_home_folder_is_refused_by_name(tmp_path, name):
    (tmp_path / "c.yml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=f"{name}: '~nosuchuser/x': the home folder ~nosuchuser is not known"):
        load_config(tmp_path / "c.yml", [f"{name}=~nosuchuser/x"])


def test_none_stays_none_and_home_itself_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yml").write_text("init_weight: ~\ngta5: {data_list: ~}")
    cfg = load_config("~/c.yml", ["gta5.data_dir=~"])
    assert cfg.init_weight is None and cfg.section("gta5").data_list is None
    assert cfg.section("gta5").data_dir == str(tmp_path) == expanded("~", "x")


def test_home_folders_in_the_options_of_every_script(world, monkeypatch, capsys):
    monkeypatch.setenv("HOME", os.getcwd())
    shutil.copy("tiny.yml", "own.yml")
    def script(run, *words):
        monkeypatch.setattr(sys, "argv", ["script", *words])
        return run()
    assert script(eval_script.run, "--config", "~/own.yml", "~/start.pth", "--json", "~/s=.json", "--figure",
                  "~/f.png") == 0
    assert Path("s=.json").is_file() and Path("f.png").is_file()
    assert check.main(["--config", "~/own.yml", "cityscapes.data_dir=~/world/cityscapes"]) == 0
    assert toy_main(["--root", "~/toy", "--size", "32", "32", "--source", "1", "--train", "1", "--val", "1",
                     "--synthia", "1"]) == 0
    assert Path("toy/toy.json").is_file() and not Path("~").exists()
    for words in (["--json", "~nosuchuser/x"], ["--figure", "~nosuchuser/x.png"]):
        with pytest.raises(SystemExit, match="2"):
            script(eval_script.run, "start.pth", *words)
        assert "home folder ~nosuchuser is not known" in capsys.readouterr().err
    assert script(eval_script.run, "~nosuchuser/start.pth") == 2
    assert script(eval_script.run, "--config", "~nosuchuser/c.yml", "start.pth") == 2
