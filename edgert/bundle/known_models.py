"""Short names of well-known open models: what the hub calls each size; the first is the default.

Only checkpoints of families that edgert converts, in their original floats.
"""

from __future__ import annotations

from collections.abc import Mapping

KNOWN: Mapping[str, Mapping[str, str]] = {
    "deepseek-r1": {
        "1.5b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "7b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "8b": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    },
    "ernie4.5": {"0.3b": "baidu/ERNIE-4.5-0.3B-PT"},
    "exaone4": {"1.2b": "LGAI-EXAONE/EXAONE-4.0-1.2B"},
    "falcon-h1": {
        "0.5b": "tiiuae/Falcon-H1-0.5B-Instruct",
        "1.5b": "tiiuae/Falcon-H1-1.5B-Instruct",
    },
    "gemma": {"2b": "google/gemma-2b-it", "7b": "google/gemma-7b-it"},
    "gemma2": {"2b": "google/gemma-2-2b-it", "9b": "google/gemma-2-9b-it"},
    "gemma3": {
        "1b": "google/gemma-3-1b-it",
        "270m": "google/gemma-3-270m-it",
        "4b": "google/gemma-3-4b-it",
    },
    "granite3.3": {
        "2b": "ibm-granite/granite-3.3-2b-instruct",
        "8b": "ibm-granite/granite-3.3-8b-instruct",
    },
    "lfm2": {
        "1.2b": "LiquidAI/LFM2-1.2B",
        "350m": "LiquidAI/LFM2-350M",
        "700m": "LiquidAI/LFM2-700M",
    },
    "llama3.1": {"8b": "meta-llama/Llama-3.1-8B-Instruct"},
    "llama3.2": {
        "3b": "meta-llama/Llama-3.2-3B-Instruct",
        "1b": "meta-llama/Llama-3.2-1B-Instruct",
    },
    "mistral": {"7b": "mistralai/Mistral-7B-Instruct-v0.3"},
    "olmo2": {
        "7b": "allenai/OLMo-2-1124-7B-Instruct",
        "1b": "allenai/OLMo-2-0425-1B-Instruct",
    },
    "phi3": {"3.8b": "microsoft/Phi-3-mini-4k-instruct"},
    "phi4-mini": {"3.8b": "microsoft/Phi-4-mini-instruct"},
    "qwen2.5": {
        "7b": "Qwen/Qwen2.5-7B-Instruct",
        "0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
        "1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
        "3b": "Qwen/Qwen2.5-3B-Instruct",
    },
    "qwen2.5-coder": {
        "7b": "Qwen/Qwen2.5-Coder-7B-Instruct",
        "0.5b": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        "1.5b": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        "3b": "Qwen/Qwen2.5-Coder-3B-Instruct",
    },
    "qwen3": {
        "8b": "Qwen/Qwen3-8B",
        "0.6b": "Qwen/Qwen3-0.6B",
        "1.7b": "Qwen/Qwen3-1.7B",
        "4b": "Qwen/Qwen3-4B",
        "14b": "Qwen/Qwen3-14B",
    },
    "smollm2": {
        "1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    },
    "smollm3": {"3b": "HuggingFaceTB/SmolLM3-3B"},
    "stablelm2": {"1.6b": "stabilityai/stablelm-2-zephyr-1_6b"},
    "starcoder2": {"3b": "bigcode/starcoder2-3b", "7b": "bigcode/starcoder2-7b"},
    "tinyllama": {"1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"},
}
