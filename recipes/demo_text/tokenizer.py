"""Byte-level BPE for the demo model, its ChatML-like template, and dialogue encoding with a loss
mask.

The tokenizer is lossless (no normaliser, every byte has a token), so bits per byte are well
defined.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .sources import Dialogue

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, IM_START, IM_END)  # ids 0, 1, 2
CONTEXT = 2048

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Byte-level BPE of `vocab_size` tokens, specials first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the three tokenizer files in Hugging Face form."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": END_OF_TEXT, "eos_token": IM_END, "pad_token": END_OF_TEXT}
    config = {
        **names,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            str(index): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for index, token in enumerate(SPECIALS)
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in `folder`."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def render(dialogue: Dialogue, *, prompt: bool = False) -> str:
    """Template text of a dialogue; `prompt` opens an assistant turn at the end."""
    text = "".join(f"{IM_START}{role}\n{content}{IM_END}\n" for role, content in dialogue)
    return text + (f"{IM_START}assistant\n" if prompt else "")


def encode_dialogues(
    tokenizer: Tokenizer, dialogues: list[Dialogue]
) -> list[tuple[list[int], list[int]]]:
    """(ids, mask) per dialogue; mask is 1 on tokens the model must learn to write.

    Those are the words of each answer and its closing <|im_end|>; ids equal the encoding of the
    whole template text, because special tokens cut the text and the header's line break is a
    token boundary.
    """
    flat = [
        text
        for dialogue in dialogues
        for role, content in dialogue
        for text in (f"{role}\n", content)
    ]
    pieces = iter(tokenizer.encode_batch_fast(flat))
    newline = tokenizer.encode("\n").ids
    start, end = tokenizer.token_to_id(IM_START), tokenizer.token_to_id(IM_END)
    out: list[tuple[list[int], list[int]]] = []
    for dialogue in dialogues:
        ids: list[int] = []
        mask: list[int] = []
        for role, _ in dialogue:
            header, content = next(pieces).ids, next(pieces).ids
            wanted = int(role == "assistant")
            ids += [start, *header, *content, end, *newline]
            mask += [0] * (1 + len(header)) + [wanted] * (len(content) + 1) + [0] * len(newline)
        out.append((ids, mask))
    return out
