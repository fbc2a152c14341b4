"""Sizes and codes that kernels, packing and sessions share. Nothing here needs Numba."""

from __future__ import annotations

# Control block of a program: int64 words, each on a cache line of its own.
CTRL_WORK = 0  # next chunk of the running instruction
CTRL_ARRIVED = 64  # threads at the barrier
CTRL_PHASE = 128  # barriers passed
CTRL_GO = 192  # steps opened for workers
CTRL_CANCEL = 256  # set to leave the program at the next barrier
CTRL_LEFT = 320  # what CTRL_CANCEL was at the last barrier: the same for all threads
CTRL_LED = 384  # steps that the leading thread took its part in, see CTRL_GO
CTRL_BYTES = 448

# Mailbox of a worker thread: int64 words on one cache line.
BOX_GO = 0  # steps brought so far
BOX_STOP = 8  # set when the worker shall end
BOX_TABLE, BOX_COUNT = 16, 24  # the program: address, instructions
BOX_CTRL = 32  # its control block
BOX_THREAD, BOX_THREADS = 40, 48  # the worker's number in the step, and of how many
BOX_BYTES = 64

PAGE = 64  # tokens of one sequence in a page of keys or values
SEGMENT = 4  # pages whose online softmax is one partial result
TILE_TOKENS = 8  # tokens of one sequence that share the keys they read

TILE = 32  # tokens that share one unpacking of a weight block
TOKEN_BLOCK = 32 + 4 + 4  # bytes of one token's block of 32 activations: codes, scale, correction
ROWS = 16  # output rows of a matrix that are interleaved

INT4_OFFSET, INT8_OFFSET = 8, 128  # what is added to a weight's code to store it

SILU, GELU, GELU_TANH = 0, 1, 2
ACTS = {"silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH}
