"""What holds for all tests."""
import os
import signal

import pytest

from utils import machine

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch reads it once, at the first product on a GPU
# A shell without job control starts background jobs with SIGINT ignored, and so would be every process of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def float32_unless_said():
    """amp: auto is float32 in the tests' own process, whatever the machine: they compare numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "computes_in_bf16", lambda device: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk():
    """What is written in the tests' own process need not outlive the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
