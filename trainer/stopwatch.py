"""Time and memory of pieces of work, on the device where the network is."""
import time
from collections.abc import Callable

import torch

from utils.memory import peak_memory, reset_peak

ENOUGH = 2.0  # seconds over which something is timed, if there is as much of it
MOST = 64     # images or steps over which it is timed


class Stopwatch:
    """Measures seconds, and the peaks of memory, of the GPU if that is the device. peaks: of what -> bytes."""

    def __init__(self, device: torch.device):
        self.device, self.peaks = device, {}

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds that work() takes."""
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def per_item(self, measure: Callable[[int], float], most: int) -> float:
        """Seconds of each of the items that measure(count) takes seconds for. The first call warms up, unless it takes
        twice as long as is enough."""
        count, seconds = 1, measure(1)
        while count < min(most, MOST) and seconds < (2 * ENOUGH if count == 1 else ENOUGH):
            wanted = 4 if count == 1 else max(2 * count, int(1.2 * count * ENOUGH / max(seconds, 1e-6)))
            count = min(most, MOST, wanted)
            seconds = measure(count)
        return seconds / count

    def note_peak(self, title: str) -> None:
        """Note the peak of memory since the last call."""
        if self.device.type == "cuda":
            self.peaks[title] = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.peaks[title] = peak_memory()
            reset_peak()

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
