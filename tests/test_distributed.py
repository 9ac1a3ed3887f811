"""utils/distributed.py: shares, collectives, errors and stops of several processes."""
import subprocess
import sys
import time

import pytest
import torch
from torchrun import MAIN_REFUSES, ROOT, torchrun

from utils import cli, distributed
from utils.config import load_config
from utils.errors import ConfigError, PeerLost, Stopped

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def as_process(monkeypatch):
    """Be process `rank` of `size` in the eyes of `utils.distributed`, without a connection."""
    def become(rank, size):
        for name, value in zip(NAMES, (rank, size, rank, size, "localhost", "1")):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(distributed, "_joined", True)
    return become


@pytest.mark.parametrize("size", range(1, 9))
def test_every_item_is_in_exactly_one_share(as_process, size):
    for count in range(20):
        shares = []
        for rank in range(size):
            as_process(rank, size)
            shares.append(list(distributed.share(list(range(count)))))
        assert sorted(item for share in shares for item in share) == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_without_torchrun_there_is_one_process():
    x = torch.randn(3)
    assert (distributed.rank(), distributed.size(), distributed.is_main(), distributed.joined()) == (0, 1, True, False)
    assert distributed.share([1, 2]) == [1, 2] and distributed.gathered("a") == ["a"]
    assert torch.equal(distributed.total(x), x) and torch.equal(distributed.smallest(x), x)
    assert distributed.from_main(lambda: 5) == 5 and distributed.any_of(True) and not distributed.any_of(False)
    with pytest.raises(Stopped, match="SIGTERM"), distributed.together():
        raise Stopped("SIGTERM")


@pytest.mark.parametrize("environment, words, named", [
    ({}, ["multigpu=True"], "torchrun --nproc_per_node"),
    ({"WORLD_SIZE": "4"}, [], "LOCAL_RANK"),
    ({"WORLD_SIZE": "4", "RANK": "1"}, [], "MASTER_ADDR"),
])
def test_several_processes_are_started_by_torchrun_alone(monkeypatch, environment, words, named):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"multigpu.*{named}"):
        load_config("config/toy/ld_config.yml", words)


def test_under_torchrun_multigpu_may_have_either_value(as_process):
    as_process(1, 2)
    assert load_config("config/toy/ld_config.yml", ["multigpu=True"]).multigpu
    assert not load_config("config/toy/ld_config.yml", []).multigpu


def test_a_set_world_size_of_one_is_no_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    load_config("config/toy/ld_config.yml", [])


COLLECTIVES = """
import atexit, sys, time, torch
from utils import distributed
from utils.cli import guarded, leave
from utils.errors import ConfigError, NothingToDo, Stopped
from utils.progress import say

def main():
    r, n = distributed.rank(), distributed.size()
    x = torch.arange(3, dtype=torch.float64) + r
    assert torch.equal(distributed.total(x), torch.arange(3, dtype=torch.float64) * n + sum(range(n)))
    assert torch.equal(x, torch.arange(3, dtype=torch.float64) + r), "the argument is left as it is"
    assert torch.equal(distributed.smallest(torch.tensor([r, -r])), torch.tensor([0, 1 - n]))
    assert distributed.gathered({"rank": r}) == [{"rank": i} for i in range(n)]
    assert distributed.any_of(r == n - 1) and not distributed.any_of(False)
    assert distributed.from_main(lambda: [r, "main"]) == [0, "main"]
    try:
        distributed.from_main(lambda: (_ for _ in ()).throw(ConfigError("key: wrong")))
        raise AssertionError("no error")
    except ConfigError as error:
        assert str(error) == "key: wrong" and error.said == (r > 0)
    try:
        with distributed.together():
            if r == n - 1:
                raise Stopped("SIGUSR1")
        raise AssertionError("not stopped")
    except Stopped as stop:
        assert ("SIGUSR1" in str(stop)) == (r == n - 1)
    say("one line")
    say("from each", everywhere=True)
    distributed.wait()
    if "late" in sys.argv and r == 0:
        atexit.register(time.sleep, 2)
    if {"fail", "late"} & set(sys.argv):
        distributed.from_main(lambda: (_ for _ in ()).throw(ConfigError("key: wrong")))
    if {"die", "debug"} & set(sys.argv) and r == 1:
        raise ConfigError("this one ends")
    if "kill" in sys.argv and r == 1:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.wait()
    return 0

leave(guarded(main, "debug" in sys.argv, several="alone" not in sys.argv))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_collectives(tmp_path, processes):
    (tmp_path / "run.py").write_text(COLLECTIVES)
    done = torchrun(processes, "run.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("one line") == 1
    assert sorted(line for line in done.stdout.splitlines() if "from each" in line) == sorted(
        ["from each", *(f"process {i}: from each" for i in range(1, processes))])


@pytest.mark.slow
@pytest.mark.parametrize("how, shown", [("die", "process 1: error: this one ends"), ("kill", "Signal 9 (SIGKILL)"),
                                        ("fail", "process 0: error: key: wrong"), ("late", MAIN_REFUSES),
                                        ("debug", "utils.errors.ConfigError: this one ends"),
                                        ("alone", "start it without torchrun")],
                         ids=lambda value: value.split()[0])
def test_a_process_that_fails_ends_the_job_soon_and_says_why(tmp_path, how, shown):
    (tmp_path / "run.py").write_text(COLLECTIVES)
    start = time.monotonic()
    done = torchrun(2, "run.py", how, folder=tmp_path, timeout=120)
    assert done.returncode != 0 and shown in done.stderr
    assert "process 1: error: key" not in done.stderr, "an error of all is said once"
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("nccl, fails, destroyed", [(True, True, 0), (True, False, 1), (False, True, 1)])
def test_a_process_that_fails_does_not_wait_for_nccl(monkeypatch, nccl, fails, destroyed):
    """`destroy_process_group` waits for the others, which may be within a collective."""
    calls, codes = [], []
    for name, value in (("_joined", True), ("_nccl", nccl), ("_at_once", False)):
        monkeypatch.setattr(distributed, name, value)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append(1))
    monkeypatch.setattr(cli.os, "_exit", codes.append)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def main():
        if fails:
            raise ConfigError("key: wrong")
    with pytest.raises(SystemExit):
        cli.leave(cli.guarded(main))
    assert len(calls) == destroyed and codes == [2] * (nccl and fails) and not distributed.joined()


@pytest.mark.parametrize("text, kind", [("Cuda failure 2 'out of memory'", RuntimeError),
                                        ("Connection reset", PeerLost)])
def test_a_collective_that_gets_no_memory_has_lost_nobody(text, kind):
    with pytest.raises(kind, match=text), distributed._peers():
        raise RuntimeError(text)


def test_a_script_imports_no_torch_to_know_its_processes():
    code = "import sys; from utils import distributed; distributed.rank(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
