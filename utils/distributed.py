"""The processes of a run that was started by torchrun, one on each device: who this process is, and what they share.

Without torchrun there is one process, and every function here gives what that one process has. Values pass through the
CPU (gloo), tensors through the backend of their device (gloo or nccl). A call that all processes have to make together
is a collective: it waits for all of them, at most `TIMEOUT`, and raises PeerLost if one has ended.
"""
import contextlib
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import ConfigError, NothingToDo, PeerLost, Stopped, UserError, first_line
from utils.memory import gpu_is_full

TIMEOUT = timedelta(minutes=30)  # of a collective: longer than what one process does while others wait
_ENDING = 10  # seconds that process 0 may take from disconnecting to its end
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
_joined, _nccl, _at_once = False, False, False
if all(name in os.environ for name in _NEEDED):  # torch reads it when it is imported; it warns while it connects, and
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # where all parameters of a network have gradients
T = TypeVar("T")
E = TypeVar("E", UserError, NothingToDo, Stopped)
Mean = Callable[[Any], Any]  # a tensor -> its mean over several parts of a batch, of its shape


def launched() -> bool:
    """Whether torchrun has started this process."""
    return all(name in os.environ for name in _NEEDED)


def rank() -> int:
    """Number of this process among all, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def size() -> int:
    """The number of processes."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_rank() -> int:
    """Number of this process among those of this machine, from 0; also of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def local_size() -> int:
    """The number of processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() else 1


def is_main() -> bool:
    """Whether this is process 0, which alone writes logs, checkpoints and bars."""
    return rank() == 0


def restarted() -> bool:
    """Whether torchrun has started the processes again after one has failed (--max-restarts)."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def launcher() -> str:
    """Names the torchrun that has started this process; the same after a restart, another for each call of it."""
    parent, began = os.getppid(), ""
    with contextlib.suppress(OSError, IndexError):  # in a container the number alone may always be the same
        began = Path(f"/proc/{parent}/stat").read_text("utf-8").rpartition(")")[2].split()[19]  # proc(5): starttime
    return f"{socket.gethostname()} {parent} {began}"


def alone(tensor: Any) -> Any:
    """The mean of a tensor over the parts of a batch where there is but one: the tensor itself."""
    return tensor


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's share of the items: every `size()`-th one, from number `rank()` on. Each item is in one share."""
    return items[rank()::size()] if _joined else items


def joined() -> bool:
    """Whether the processes are connected."""
    return _joined


def join() -> None:
    """Connect the processes; does nothing without torchrun, or if they are connected. Collective. Raises PeerLost."""
    global _joined, _nccl
    if not launched() or _joined:
        return
    import torch
    import torch.distributed as dist
    gpus = torch.cuda.is_available() and dist.is_nccl_available() and local_rank() < torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local_rank())  # what is allocated without a device's number, by nccl, say
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    with _peers():
        store, *_ = next(dist.rendezvous("env://", rank(), size(), timeout=TIMEOUT))
        dist.init_process_group(backend, store=dist.PrefixStore(_start(store), store), rank=rank(), world_size=size(),
                                timeout=TIMEOUT)
    _joined, _nccl = True, gpus


def _start(store: Any) -> str:
    """A name for this start of the processes, the same in all. torchrun's store still has what the processes of the
    start before a restart have written there, such as their addresses, and how often it has restarted may differ
    between machines. So process 0 draws a name, and each of the others goes on once process 0 has seen it there."""
    own, process = uuid.uuid4().hex, rank()
    if process == 0:
        store.set("start", own)
        for other in range(1, size()):
            store.set(f"{own}/{other}/seen", _awaited(store, f"{own}/{other}"))
        return own
    end = time.monotonic() + TIMEOUT.total_seconds()
    while time.monotonic() < end:
        start = _awaited(store, "start").decode()  # it may be the one before
        store.set(f"{start}/{process}", own)
        if store.check([f"{start}/{process}/seen"]) and store.get(f"{start}/{process}/seen").decode() == own:
            return start
        time.sleep(0.05)
    raise RuntimeError("process 0 has not come")


def _awaited(store, key):
    """A value of the store, once it is there; a signal ends this wait, unlike one of the store's own."""
    end = time.monotonic() + TIMEOUT.total_seconds()
    while not store.check([key]):
        if time.monotonic() > end:
            raise RuntimeError("a process has not come")
        time.sleep(0.05)
    return store.get(key)


def leave(failed: bool = False) -> None:
    """Disconnect this process, before it ends: else gloo's threads abort it. Never raises. failed: by an error. The
    others may then be within a collective, for which nccl would wait: it is left as it is, and `ends_at_once`."""
    global _joined, _at_once
    if _joined:
        import torch.distributed as dist
        _joined, _at_once = False, failed and _nccl
        if not _at_once:
            with contextlib.suppress(Exception):
                dist.destroy_process_group()


def ends_at_once() -> bool:
    """Whether this process has to end without Python's own clean-up, which would wait for nccl."""
    return _at_once


# ---- collectives -----------------------------------------------------------------------------------------------------


def total(tensor: Any) -> Any:
    """The sum of a tensor over the processes, a new tensor on its device; all have the same shape. Collective."""
    return _reduced(tensor, "SUM")


def smallest(tensor: Any) -> Any:
    """The elementwise minimum of a tensor over the processes, a new tensor. Collective."""
    return _reduced(tensor, "MIN")


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process. Collective."""
    if not _joined:
        return flag
    import torch
    return bool(total(torch.tensor(int(flag))).item())


def gathered(value: T) -> list[T]:
    """The picklable, small values of all processes, in the order of rank, in each of them. Collective."""
    if not _joined:
        return [value]
    import torch.distributed as dist
    values: list = [None] * size()
    with _peers():
        dist.all_gather_object(values, value)
    return values


def collected(found: list[T]) -> list[T]:
    """What the processes have found for the items of their `share`, picklable and small, in the order of all the items.
    Collective."""
    lists = gathered(found)
    return [lists[i % len(lists)][i // len(lists)] for i in range(sum(map(len, lists)))]


def stacked(tensor: Any) -> Any:
    """The tensors of all processes, which have the same shape and type, in the order of rank: [processes, ...].
    Collective."""
    if not _joined:
        return tensor.unsqueeze(0)
    import torch
    import torch.distributed as dist
    tensors = [torch.empty_like(tensor) for _ in range(size())]
    with _peers():
        dist.all_gather(tensors, tensor.detach().contiguous())
    return torch.stack(tensors)


def from_main(call: Callable[[], T]) -> T:
    """What `call()` returns, or the UserError or NothingToDo that it raises, in process 0; the others do not call it.
    What it returns must be picklable and small. Collective."""
    if not _joined:
        return call()
    import torch.distributed as dist
    outcome: list = [None, None]
    if is_main():
        try:
            outcome[0] = call()
        except (UserError, NothingToDo) as error:
            outcome[1] = error
    with _peers():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise of_all(outcome[1])
    return outcome[0]


def of_all(error: E) -> E:
    """An error that all processes are about to raise; the first says it."""
    error.said = not is_main()
    return error


def wait() -> None:
    """Wait for all processes. Collective."""
    any_of(False)


def await_main() -> None:
    """Wait until process 0, which says the error that all have, has ended, so that torchrun reports that one. Process 0
    disconnects somewhat before it ends; torchrun then ends this process, or, on another machine, it ends by itself."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(PeerLost):
        wait()
    time.sleep(_ENDING)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A pass in which each process works on its own share of the data. If a signal has stopped the share of any, all
    raise Stopped at the end of the block. Collective, at its end; other errors leave it at once."""
    stopped = None
    try:
        yield
    except Stopped as stop:
        if not _joined:
            raise
        stopped = stop
    if any_of(stopped is not None):
        raise stopped or Stopped("a signal to another process")


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Errors of a collective as PeerLost."""
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:  # of gloo, nccl, the store; DistError is one
        if gpu_is_full(error):  # nccl takes memory when it begins
            raise
        raise PeerLost(lost(error)) from error


def lost(error: Exception) -> str:
    """The message that another process is gone. error: what a collective has raised."""
    return (f"process {rank()} of {size()} has lost the others ({first_line(error)}): one of them has ended, its own "
            "error says why, or the network between machines does not let them through.")


def is_loss(error: BaseException) -> bool:
    """Whether an error, such as one of a backward pass that sums gradients, says that another process is gone."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, RuntimeError) and any(word in text for word in (
        "gloo", "Dist", "NCCL", "Connection closed by peer", "Connection reset", "Broken pipe"))


def _reduced(tensor, operation):
    if not _joined:
        return tensor
    import torch.distributed as dist
    result = tensor.detach().clone()
    with _peers():
        dist.all_reduce(result, getattr(dist.ReduceOp, operation))
    return result


def require_launcher(multigpu: bool) -> None:
    """Raise ConfigError if several processes are asked for, by the key or by the environment, and torchrun has not
    started them."""
    missing = [name for name in _NEEDED if name not in os.environ]
    asked = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    if missing and (multigpu or asked):
        lacks = f" (WORLD_SIZE is set, and {', '.join(missing)} missing)" if asked else ""
        raise ConfigError("multigpu: several processes are started by torchrun, as in `torchrun --nproc_per_node 4 "
                          f"run.py ...` for four GPUs{lacks}.")
