"""Every limit of the runtime in one place (see the reliability promises in the README).

Sizes are bytes unless a name says otherwise. Raise one by assigning to it before loading.
"""

from __future__ import annotations

MANIFEST_BYTES = 1 << 20
GRAPH_BYTES = 16 << 20
GRAPH_NODES = 15_000
TENSOR_HEADER_BYTES = 16 << 20
TENSOR_COUNT = 100_000
TENSOR_RANK = 8
TENSOR_DIM = 1 << 31
TENSOR_NAME_BYTES = 512
GGUF_HEADER_BYTES = 128 << 20  # metadata, the tokenizer among them, and the list of tensors
GGUF_PIECE_BYTES = 1 << 18  # that are read at once
GGUF_KEYS = 4096
GGUF_TENSORS = 1 << 14
GGUF_ALIGNMENT = 1 << 16
GGUF_SPLITS = 1024
ADAPTER_RANK = 4096  # of a LoRA adapter
ADAPTERS = 64  # beside one model
CONFIG_BYTES = 4 << 20
PROFILE_BYTES = 1 << 20  # of a device profile, a budget, a workload or a baseline
TABLE_BYTES = 64 << 20  # of a table of scores
TOKENIZER_BYTES = 64 << 20
TEMPLATE_BYTES = 256 << 10
TEMPLATE_OUTPUT_BYTES = 4 << 20
TEMPLATE_SECONDS = 2.0
TOKENIZE_SECONDS = 20.0
TOKEN_CHARACTERS = 4096
PATH_CHARACTERS = 255
PROMPT_CHARACTERS_PER_TOKEN = 16
PROMPT_BYTES = 64 << 20  # more than the largest context holds; of one input of the command line
STOP_STRINGS = 16
STOP_STRING_CHARACTERS = 256
LOGIT_BIAS_ENTRIES = 4096
MAX_TOKENS = 1 << 24
CONTEXT_TOKENS = 1 << 20
SEED_BITS = 64
TEMPERATURE = 100.0
REPEAT_PENALTY = 100.0
STOP_TOKEN_IDS = 256
RELAY_BYTES = 1 << 20  # of a file of cues
RELAY_CUES = 1024
RELAY_CUE_CHARACTERS = 48
LOGPROBS = 20  # likeliest tokens that a result may list at one position
ONNX_BYTES = 64 << 20
ONNX_INLINE_BYTES = 32 << 20
ONNX_SPARSE_BYTES = 1900 << 20  # besides, of dense forms of sparse weights; protobuf ends at 2 GiB
ONNX_NODES = 100_000
ONNX_FUNCTION_NODES = 64  # of one function
ONNX_FIELDS = 500_000
ONNX_TEXT_BYTES = 4096  # of one name or metadata value
EVAL_BYTES = 256 << 20
CALIBRATION_BYTES = 64 << 20
CALIBRATION_LINE = 1 << 20  # characters
TRAINING_TOKENS = 1 << 50  # of one training, far more than any has had
TRAINING_BATCH = 1 << 26  # tokens of a step
SEED = 1 << 63  # of a training, below
LAYERS = 1024
PICTURE_SIDE = 1 << 14  # pixels, of pictures that are made
CHECKPOINTS = 8  # of one sequence with recurrent states
CHECKPOINT_BYTES = 64 << 20  # of one sequence, all of them together
PROMPT_CACHE_BYTES = 4 << 30  # of files of known beginnings, of all models in a folder
CACHE_TABLE_BYTES = 4 << 20  # calibration of a cache policy
CACHE_TABLE_STEPS = 10_000
HEADS = 4096
HEAD_DIM = 1 << 16
LISTED_FAULTS = 256
IMAGE_PIXELS = 32_000_000  # of a picture that is read
IMAGE_BYTES = 16 << 20  # of its file
IMAGE_SIDE = 4096  # pixels of a picture that is drawn
IMAGE_STEPS = 1000
IMAGE_BATCH = 64
BATCH_BYTES = 4 << 30  # of values that live together while several pictures are computed at once
