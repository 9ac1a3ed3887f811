"""A GPU whose memory is full is one line, whichever library says so, and is not taken for anything else."""
import pytest
import torch
from test_segmenter import Answer, segmenter

from utils import cli, distributed
from utils.cli import EXIT_UNEXPECTED, EXIT_USER_ERROR, guarded
from utils.memory import gpu_is_full

FULL = [  # as torch 2.4 to 2.14 pass them on
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),  # pinned memory
    RuntimeError("Caught RuntimeError in pin memory thread for device 0.\nOriginal: CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error\nLast error:\nCuda failure 2 'out of "
                 "memory'"),
]
OTHERS = [RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError("out of memory of mine"),
          RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), ValueError("CUDA out of memory"), MemoryError(),
          RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`")]


def number(error):
    return f"{type(error).__name__} {str(error)[:40]}"


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("error", FULL, ids=number)
def test_it_is_one_line_that_says_what_helps(error, joined, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "_joined", joined)  # an error of nccl's is no lost process then
    monkeypatch.setattr(cli, "ignore_signals", lambda: None)

    def main():
        raise error
    assert gpu_is_full(error) and guarded(main) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: the GPU's memory is full") and "checkpointing=true" in said


@pytest.mark.parametrize("error", OTHERS, ids=number)
def test_other_errors_are_not_taken_for_it(error, capsys):
    def main():
        raise error
    assert not gpu_is_full(error)
    assert guarded(main) == (EXIT_USER_ERROR if isinstance(error, MemoryError) else EXIT_UNEXPECTED)
    assert "GPU's memory is full" not in capsys.readouterr().err


@pytest.mark.parametrize("error", FULL, ids=number)
def test_a_network_that_does_not_fit_is_not_asked_for_another_size(error):
    class Full(Answer):
        def forward(self, x):
            if x.shape[-1] == 9:
                raise error
            return super().forward(x)
    with pytest.raises(type(error)) as found:
        segmenter(Full(), 3)(torch.ones(2, 3, 9, 9))
    assert found.value is error
