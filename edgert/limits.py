"""Every limit of the runtime in one place (see the reliability promises in the README).

Sizes are bytes unless a name says otherwise. Raise one by assigning to it before loading.
"""

from __future__ import annotations

MANIFEST_BYTES = 1 << 20
GRAPH_BYTES = 16 << 20
TENSOR_HEADER_BYTES = 16 << 20
TENSOR_COUNT = 100_000
TENSOR_RANK = 8
TENSOR_DIM = 1 << 31
TENSOR_NAME_BYTES = 512
CONFIG_BYTES = 4 << 20
TOKENIZER_BYTES = 64 << 20
TEMPLATE_BYTES = 256 << 10
TEMPLATE_OUTPUT_BYTES = 4 << 20
TEMPLATE_SECONDS = 2.0
TOKENIZE_SECONDS = 20.0
PATH_CHARACTERS = 255
PROMPT_CHARACTERS_PER_TOKEN = 16
STOP_STRINGS = 16
STOP_STRING_CHARACTERS = 256
LOGIT_BIAS_ENTRIES = 4096
MAX_TOKENS = 1 << 24
CONTEXT_TOKENS = 1 << 20
SEED_BITS = 64
