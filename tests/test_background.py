"""Copies to the CPU and calls in threads: what is copied, when it is waited for, on which GPU's stream."""
import threading
from collections import OrderedDict

import pytest
import torch

from utils import background
from utils.background import host_copies, host_copy, later, to_device
from utils.checkpoint import digest, digest_later


def test_a_copy_is_what_was_there_when_it_was_asked_for():
    weight = torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    state = OrderedDict(a=weight, b=[torch.arange(3), (1, "x", None)], c={"d": {2: torch.tensor(True)}})
    state._metadata = {"": {"version": 1}}
    before = weight.detach().clone()
    copies = host_copies(state)()
    with torch.no_grad():
        weight += 1
    state["b"][0] += 1
    state["b"].append(5)
    state["c"]["e"] = 1
    assert isinstance(copies, OrderedDict) and copies._metadata == state._metadata and list(copies) == ["a", "b", "c"]
    assert copies["a"].equal(before) and copies["a"].stride() == weight.stride() and not copies["a"].requires_grad
    assert copies["b"][0].tolist() == [0, 1, 2] and copies["b"][1:] == [(1, "x", None)]
    assert list(copies["c"]) == ["d"] and copies["c"]["d"][2].item() is True


def test_what_is_on_the_cpu_is_not_copied_where_nothing_changes_it():
    x = torch.ones(2)
    assert host_copy(x)() is x and host_copies({"x": x}, clone=False)()["x"] is x and to_device(x, x.device) is x


def test_later_runs_beside_and_hands_over_what_became_of_it():
    begun, go = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert go.wait(30)
        return threading.get_ident()
    found = later(work)
    assert begun.wait(30)  # though nobody waits for it yet
    go.set()
    assert found() != threading.get_ident() and found() == found()
    with pytest.raises(ZeroDivisionError):
        later(lambda: 1 / 0)()


def test_a_digest_in_a_thread_is_that_of_the_tensors_as_they_were():
    state = {"a": torch.randn(50, 7), "b": torch.arange(9)}
    expected = digest(state)
    found = digest_later(state)
    state["a"] += 1
    assert found() == expected != digest(state)


class Stream:
    def __init__(self, device):
        self.device = device


def test_an_event_is_recorded_on_the_stream_of_the_tensors_gpu_and_waits_without_spinning(monkeypatch):
    """Of another GPU than the current one, the current stream is not the one in which the copy runs."""
    seen = []

    class Event:
        def __init__(self, blocking=False):
            self.blocking = blocking

        def record(self, stream=None):
            seen.append((self.blocking, stream and stream.device))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    background._recorded(torch.device("cuda:1"))
    assert seen == [(True, torch.device("cuda:1"))]
