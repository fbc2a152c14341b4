"""Sizes and codes of the CPU kernels' memory layouts. Imports nothing, so that who only plans or
counts bytes needs no Numba.

What the bytes mean stands beside the kernels: weights and activation tiles in `linear.py`, pages in
`attention.py`.
"""

from __future__ import annotations

# Weights ("r16s"): 16 output rows interleaved, in blocks of 32 inputs behind their scales.
LAYOUT = "r16s-2"  # the last number also counts orders of matrices
ROWS = 16  # output rows of a group, the lanes of a vector
GROUP = 32  # inputs of a block: those that share a scale in int4-g32 and int8-g32
SCALE_BYTES = 2 * ROWS  # float16 scales of a block
PLANE_BYTES = ROWS * GROUP // 8  # of a block, for each bit of codes in planes (`simd_planes.py`)
ZERO_BYTES = ROWS  # zero codes of a group, where it has some of its own
INT4_BYTES = SCALE_BYTES + ROWS * GROUP // 2  # a packed block
INT8_BYTES = SCALE_BYTES + ROWS * GROUP
CHANNEL_HEAD = 4 * ROWS  # float32 scales, before all blocks of rows that have one scale each
CHANNEL_BYTES = ROWS * GROUP  # a packed block of theirs
CODE_F32, CODE_F16, CODE_INT8, CODE_INT4, CODE_CHANNEL = range(
    5
)  # what the `embed` kernel calls them
CODE_PLANES = 1 << 8  # plus bits, plus blocks of a group << 16, plus 1 << 24 with zero codes
CODE_INDEXED = 1 << 32  # plus 1 for float16 values, plus the kept values of a row << 1
CODE_KEPT = 1 << 40  # plus bits, plus blocks of a superblock << 8, flags and middle, see `_kept`
HALVES = -1  # as an offset: corrections are the sums of a block's two halves, 16 bits each
WHOLE = -2  # as an offset: a row has one scale, and one correction for codes that are 128 more
ATOMS = 64  # inputs of a row with indices that share a scale

# Activations of quantized products.
TILE = 32  # tokens that share one unpacking of a weight block
TOKEN_BLOCK = GROUP + 4 + 4  # bytes of one token's block in a tile: codes, scale, correction
INT4_OFFSET, INT8_OFFSET = 8, 128  # what stored codes have over their value

# Products with float weights, and grids.
CHUNK = 96  # rows of a unit of work, for up to SPAN groups
SPAN = 4
WINOGRAD_TILES = 24  # of 2 x 2 outputs of a convolution that are worked on at a time
MOMENT_ROWS = 128  # rows whose moments are summed in float32

# Products of stacked experts: their calls of other kernels (`experts.py`).
SPREAD = 8  # groups of outputs of a unit of work
EXPERT_HEAD = 384  # scratch before the sums
EXPERT_SUMS = 64 * TILE * 2 * SPREAD

# Keys and values.
PAGE = 64  # tokens of one sequence in a page
SEGMENT = 4  # pages whose softmax is one partial result
CODE_TOKENS = 32  # whose keys share a scale in each channel
CODE_CHANNELS = 32  # of a value that share a scale
TILE_TOKENS = 8  # tokens of one sequence that share the keys they read

# Linear attention.
SLABS = 4  # parts that a head's features of second order are summed in
BLOCK_FEATURES = 256  # of queries that are made at a time
BLOCK_QUERIES = 48  # that are worked on at a time
BLOCK_KEYS = 256  # that queries are compared with at a time, where all tokens are kept
FOLD_FEATURES = 48  # whose values are added to the state at a time

# Control block of a program: int64 words, each on a cache line of its own.
CTRL_WORK = 0  # next chunk of the running instruction
CTRL_ARRIVED = 64  # threads at the barrier
CTRL_PHASE = 128  # barriers passed
CTRL_GO = 192  # steps opened for workers
CTRL_CANCEL = 256  # set to leave the program at the next barrier
CTRL_YIELD = 264  # address of the system's function that gives a time slice up; never written
CTRL_LEFT = 320  # what CTRL_CANCEL was at the last barrier: the same for all threads
CTRL_LED = 384  # steps that the leading thread took its part in, see CTRL_GO
CTRL_BYTES = 448

# Mailbox of a worker thread: int64 words on one cache line.
BOX_GO = 0  # steps brought so far
BOX_STOP = 8  # set when the worker shall end
BOX_TABLE, BOX_COUNT = 16, 24  # the program: address, instructions
BOX_CTRL = 32  # its control block
BOX_THREAD, BOX_THREADS = 40, 48  # the worker's number in the step, and of how many
BOX_YIELD = 56  # as CTRL_YIELD
BOX_BYTES = 64

# What quantization does to a row first: nothing (0), an RMS norm, a layer norm (with a modulation),
# a modulation alone, an activation.
BEFORE_RMS, BEFORE_LAYER, BEFORE_MODULATION, BEFORE_ACTIVATION = range(1, 5)

SILU, GELU, GELU_TANH, RELU, QUICK_GELU, RELU2 = range(6)
ACTS = {
    "silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH, "relu": RELU, "quick_gelu": QUICK_GELU,
    "relu2": RELU2,
}  # fmt: skip
IDENTITY, BY_SILU, BY_SIGMOID = range(3)
GATES = {"identity": IDENTITY, "silu": BY_SILU, "sigmoid": BY_SIGMOID}


def kept_bytes(bits: int, sub: int, minima: bool, scaled: bool) -> tuple[int, int, int]:
    """Bytes of a packed block and of a superblock's head, and blocks of a superblock, of a kept
    format. sub: inputs of a scale within; scaled: whether there are such scales."""
    steps = ROWS * (GROUP // sub) * (1 + minima) if scaled else 0
    return PLANE_BYTES * bits + steps, SCALE_BYTES * (1 + minima), 8 if scaled else 1


def groups_of(n: int) -> int:
    """Groups of 16 rows that hold n rows."""
    return -(-n // ROWS)


def blocks_of(k: int) -> int:
    """Blocks of 32 inputs that hold a row of k inputs."""
    return -(-k // GROUP)
