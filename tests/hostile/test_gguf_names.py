"""GGUF files in which something has two names, or stands where nobody reads it, and vocabularies
that take too long: refused, and soon."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.sources.base import open_source
from edgert.converters.sources.gguf_tokenizer import merges, tokenizer_of, vocabulary_of

from edgert.errors import ConvertError
from tests.gguf_bytes import ARRAY, F32, I32, Made, Tensor, Typed
from tests.hostile.gguf_models import KEYS, VOCAB, WIDTH, model, q8_0
from tests.hostile.test_gguf_delta import delta, linear
from tests.hostile.test_gguf_source import of, refusal


def matrix(name: str, *shape: int) -> Tensor:
    """Float32, of the shape that safetensors would tell."""
    return Tensor(name, tuple(reversed(shape)), 0, bytes(4 * int(np.prod(shape))))


def vector(name: str, *shape: int) -> Tensor:
    count = int(np.prod(shape))
    return Tensor(name, tuple(reversed(shape)), 0, struct.pack(f"<{count}f", *[1.0] * count))


def experts(*more: Tensor) -> Made:
    """A mixture of four experts."""
    keys = of("qwen3moe", expert_count=4, expert_used_count=2, expert_feed_forward_length=16)
    made = model(keys)
    kept = [t for t in made.tensors if ".ffn_" not in t.name or "norm" in t.name]
    stacks = [
        matrix("blk.0.ffn_gate_inp.weight", 4, WIDTH),
        matrix("blk.0.ffn_gate_exps.weight", 4, 16, WIDTH),
        matrix("blk.0.ffn_up_exps.weight", 4, 16, WIDTH),
        matrix("blk.0.ffn_down_exps.weight", 4, WIDTH, 16),
        vector("blk.0.attn_q_norm.weight", 16), vector("blk.0.attn_k_norm.weight", 16),
    ]  # fmt: skip
    return replace(made, tensors=[*kept, *stacks, *more])


def test_a_mixture_is_good(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(experts().bytes())
    report = convert(tmp_path / "m.gguf", tmp_path / "m.edge", progress=False, golden=False)
    assert max(weight.error for weight in report.weights) < 0.01


def added(*more: Tensor) -> Made:
    made = model()
    return replace(made, tensors=[*made.tensors, *more])


TWICE = {
    "queries": added(matrix("blk.0.attn_qkv.weight", 64, WIDTH)),
    "gates": experts(matrix("blk.0.ffn_gate_up_exps.weight", 4, 32, WIDTH)),
    "layers": experts(matrix("blk.00.ffn_gate_exps.weight", 4, 16, WIDTH)),
    "digits": added(matrix("blk.\u0660.ffn_up.weight", 64, WIDTH)),
}


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("first", [False, True])
def test_h15_two_tensors_for_one(name: str, first: bool, tmp_path: Path) -> None:
    made = TWICE[name]
    tensors = [made.tensors[-1], *made.tensors[:-1]] if first else made.tensors
    with pytest.raises(ConvertError, match=r"which another one is as well|unexpected"):
        raise refusal(replace(made, tensors=tensors), tmp_path)


FACTORS = {
    "narrow": (vector("rope_freqs.weight", 8, 1),),
    "long": (vector("rope_freqs.weight", 5000),),
    "one": (vector("rope_factors_long.weight", 8),),
    "beside": tuple(
        vector(f"rope_{name}.weight", 8) for name in ("freqs", "factors_long", "factors_short")
    ),
    "odd": (vector("rope_factors_long.weight", 8), vector("rope_factors_short.weight", 8, 1)),
}


@pytest.mark.parametrize("name", FACTORS)
def test_h15_factors_of_frequencies_are_read_or_refused(name: str, tmp_path: Path) -> None:
    says = r"expected a vector of|alone, or both others|has 5000 numbers"
    with pytest.raises(ConvertError, match=says):
        raise refusal(added(*FACTORS[name]), tmp_path)


def test_h16_a_factor_that_is_no_number(tmp_path: Path) -> None:
    keys = {
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 16,
        "llama.rope.scaling.yarn_attn_factor": float("nan"),
    }  # fmt: skip
    with pytest.raises(ConvertError, match="yarn_attn_factor is nan"):
        raise refusal(model(keys), tmp_path)


def test_h15_layers_that_no_key_tells_of(tmp_path: Path) -> None:
    """Behind the model's own they guess, as many as `nextn_predict_layers` says: here none."""
    made = linear()
    second = [
        t._replace(name=t.name.replace("blk.0", "blk.1"))
        for t in made.tensors if t.name.startswith("blk.0")
    ]  # fmt: skip
    short = replace(model(delta(block_count=1)), tensors=[*made.tensors, *second])
    with pytest.raises(ConvertError, match="unexpected"):
        raise refusal(short, tmp_path)


def test_granite_4_without_mixers_is_a_granite(tmp_path: Path) -> None:
    """Its files tell the mixers' sizes all the same."""
    sizes = {
        "ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 1, "ssm.inner_size": 64,
        "ssm.time_step_rank": 4, "expert_shared_feed_forward_length": 64,
    }  # fmt: skip
    (tmp_path / "m.gguf").write_bytes(model(of("granite", **sizes)).bytes())
    report = convert(tmp_path / "m.gguf", tmp_path / "m.edge", progress=False, golden=False)
    assert max(weight.error for weight in report.weights) < 0.01


# --- vocabularies -------------------------------------------------------------------------------


def pieces(*more: str, **keys: Any) -> Made:
    """The good model with a SentencePiece vocabulary. keys: of `tokenizer.ggml`."""
    tokens = [*KEYS["tokenizer.ggml.tokens"], *more]
    scores = Typed(ARRAY, (F32, [0.0] * len(tokens)))
    own = {
        "model": "llama", "pre": None, "merges": None, "token_type": None, "scores": scores,
        "tokens": tokens, **keys,
    }  # fmt: skip
    table = Tensor("token_embd.weight", (WIDTH, len(tokens)), 8, q8_0((len(tokens), WIDTH)))
    return model(
        {f"tokenizer.ggml.{key}": value for key, value in own.items()}, token_embd_weight=table
    )


def tokenizer(made: Made, tmp_path: Path) -> Any:
    (tmp_path / "m.gguf").write_bytes(made.bytes())
    with open_source(tmp_path / "m.gguf") as source:
        meta: Any = source.meta  # type: ignore[attr-defined]
        return json.loads(tokenizer_of(meta, vocabulary_of(meta)))


def test_sentencepiece_begins_with_its_second_token_where_a_file_does_not_say(
    tmp_path: Path,
) -> None:
    found = tokenizer(pieces(bos_token_id=None), tmp_path)
    assert found["post_processor"]["single"][0]["SpecialToken"]["id"] == "</s>"
    assert (
        tokenizer(pieces(bos_token_id=None, add_bos_token=False), tmp_path)["post_processor"]
        is None
    )
    assert (
        tokenizer(pieces(unknown_token_id=5), tmp_path)["model"]["unk_token"]
        == (KEYS["tokenizer.ggml.tokens"][5])
    )


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"bos_token_id": 9999, "add_bos_token": True}, "says add_bos_token"),
        ({"bos_token_id": Typed(I32, -1), "add_bos_token": True}, "says add_bos_token"),
        ({"bos_token_id": 1.0}, "bos_token_id = 1.0, expected an id below"),
        ({"eos_token_id": "one"}, "expected an id below"),
        ({"token_type": Typed(ARRAY, (F32, [float("nan")] * VOCAB))}, "token types that are none"),
        ({"token_type": Typed(ARRAY, (F32, [1.5] * VOCAB))}, "token types that are none"),
        ({"token_type": Typed(ARRAY, (I32, [-1] * VOCAB))}, "token types that are none"),
        ({"token_type": Typed(ARRAY, (I32, [99] * VOCAB))}, "token types that are none"),
    ],
)
def test_h16_vocabularies_that_are_none(keys: dict[str, Any], says: str, tmp_path: Path) -> None:
    named = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    with pytest.raises(ConvertError, match=says):
        raise refusal(model(named), tmp_path)


def test_h16_a_token_twice_is_found_at_once(tmp_path: Path) -> None:
    start = time.process_time()
    many = [f"t{i}" for i in range(50_000)]
    with pytest.raises(ConvertError, match="has the token 't49999' twice"):
        raise refusal(pieces(*many, "t49999"), tmp_path)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (["a" * n for n in range(1, 400)], "over 8 ways a token to join two"),
        (["a", "b" * 100_000], "a token of 100000 characters, expected 4096 at most"),
    ],
)
def test_h16_ways_to_join_pieces_are_counted_before_they_are_listed(
    found: list[str], says: str
) -> None:
    with pytest.raises(ConvertError, match=says):
        merges(found, [0.0] * len(found), [1] * len(found))
