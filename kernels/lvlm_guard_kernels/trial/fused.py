"""The smallest kernel, by which it is found out whether Triton compiles and launches here."""

import torch
import triton
import triton.language as tl

ANSWER = 7


@triton.jit
def write_answer(out):
    """Store a number."""
    tl.store(out, 7)


def run(device: torch.device) -> None:
    """Compile and launch the kernel, and wait for what it stores.

    Raises:
        RuntimeError: It stored something else.
    """
    out = torch.zeros(1, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        write_answer[1,](out)
    if int(out) != ANSWER:
        raise RuntimeError(f"the kernel stored {int(out)} instead of {ANSWER}")
