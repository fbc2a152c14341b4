"""Linear attention on text: a ladder of kernels from scratch, and a chat model turned."""
