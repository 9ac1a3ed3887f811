"""Gradient checkpointing: to save memory, the tensors inside a block are computed again in the backward pass (Chen et
al., "Training deep nets with sublinear memory cost", 2016)."""
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(call: Callable, owner: nn.Module, *args: Any, preserve_rng_state: bool = True, **kwargs: Any) -> Any:
    """Return call(*args, **kwargs), whose inner tensors are computed again in the backward pass.

    The second time, torch's generators draw the same numbers, the running statistics of `owner`, the module whose
    forward pass it is, do not move, and modules have the forward passes that they have now (`replaced_forwards`). In
    the backward pass torch raises RuntimeError if an argument has been changed in place since.
    """
    forwards = {module: module.__dict__["forward"] for module in owner.modules() if "forward" in module.__dict__}

    @contextlib.contextmanager
    def second_time():
        with copied_buffers(owner), replaced_forwards(forwards):
            yield

    return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state,
                      context_fn=lambda: (contextlib.nullcontext(), second_time()), **kwargs)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network, each once: the outermost modules that lie in a Sequential or ModuleList and have
    children of their own."""
    seen = set()

    def walk(parent):
        for child in parent.children():
            held = isinstance(parent, (nn.Sequential, nn.ModuleList))
            if held and list(child.children()) and not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
                if id(child) not in seen:
                    seen.add(id(child))
                    yield child
            else:
                yield from walk(child)
    return walk(module)


@contextlib.contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Within, modules have other forward passes, {module: function}; afterwards their own ones."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


@contextlib.contextmanager
def copied_buffers(module: nn.Module) -> Iterator[None]:
    """Within, the module works on copies of its buffers, so that a second pass over a batch does not move the running
    statistics twice."""
    kept = [(owner, name, buffer) for owner in module.modules() for name, buffer in owner.named_buffers(recurse=False)]
    for owner, name, buffer in kept:
        setattr(owner, name, buffer.clone())
    try:
        yield
    finally:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer)
