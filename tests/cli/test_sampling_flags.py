"""Flags of the sampler reach Python, and log-probabilities reach JSON."""

from __future__ import annotations

from pathlib import Path

import edgert as package

from .conftest import Edgert

NUMPY = ("--device", "reference")


def test_all_flags_reach_the_sampler(edgert: Edgert, bundle: Path) -> None:
    flags = (
        "-n", 12, "-s", 3, "--temp", 0.9, "--top-k", 50, "--typical", 0.9, "--xtc-probability", 0.5,
        "--xtc-threshold", 0.01, "--dynatemp-range", 0.4, "--dynatemp-exp", 1.5, "--temp-first",
        "--dry-multiplier", 0.8, "--dry-base", 2, "--dry-allowed-length", 1,
        "--dry-penalty-last-n", -1, "--dry-sequence-breaker", "\\n",
    )  # fmt: skip
    with package.load(bundle, device="reference") as model:
        expected = model.generate(
            "hello hello", max_tokens=12, seed=3, temperature=0.9, top_k=50, typical_p=0.9,
            xtc_probability=0.5, xtc_threshold=0.01, dynatemp_range=0.4, dynatemp_exponent=1.5,
            temperature_last=False, dry_multiplier=0.8, dry_base=2, dry_allowed_length=1,
            dry_penalty_last_n=-1, dry_sequence_breakers=["\n"],
        )  # fmt: skip
    found = edgert("generate", bundle, "-p", "hello hello", *flags, *NUMPY, "--json").json
    assert tuple(found["token_ids"]) == expected.token_ids
    assert found["logprobs"] is None


def test_no_breakers(edgert: Edgert, bundle: Path) -> None:
    ask = ("generate", bundle, "-p", "a:a:a:a:", "-n", 4, "--temp", 0, "--dry-multiplier", 100)
    with package.load(bundle, device="reference") as model:
        for texts, flags in (
            ([], ["none"]),
            (["x", ":"], ["x", ":"]),
            (["none", "a"], ["none", "a"]),
        ):
            expected = model.generate(
                "a:a:a:a:", max_tokens=4, temperature=0, dry_multiplier=100,
                dry_sequence_breakers=texts,
            )  # fmt: skip
            given = [part for text in flags for part in ("--dry-sequence-breaker", text)]
            found = edgert(*ask, *given, *NUMPY, "--json").json
            assert tuple(found["token_ids"]) == expected.token_ids


def test_logprobs_are_in_the_json(edgert: Edgert, bundle: Path) -> None:
    ask = ("-p", "hello", "-n", 3, "--temp", 0, "--logprobs", 2, *NUMPY)
    with package.load(bundle, device="reference") as model:
        expected = model.generate("hello", max_tokens=3, temperature=0, logprobs=2).logprobs
    found = edgert("generate", bundle, *ask, "--json").json["logprobs"]
    assert expected is not None
    assert [item["token_id"] for item in found] == [item.token_id for item in expected]
    assert [item["logprob"] for item in found] == [item.logprob for item in expected]
    assert [bytes(item["bytes"]) for item in found] == [item.bytes for item in expected]
    assert [item["text"] for item in found] == [item.text for item in expected]
    assert [[t["token_id"] for t in item["top"]] for item in found] == [
        [t.token_id for t in item.top] for item in expected
    ]
    chat = edgert("chat", bundle, *ask, "--json").json["logprobs"]
    assert len(chat) == 3


def test_logprobs_without_json_are_refused(edgert: Edgert, bundle: Path) -> None:
    for verb in ("generate", "chat"):
        ran = edgert(verb, bundle, "-p", "x", "--logprobs", 1, *NUMPY)
        assert (ran.code, ran.out) == (2, "")
        assert "--logprobs shows in JSON only, expected --json beside it" in ran.err
    ran = edgert("generate", bundle, "-p", "x", "--logprobs", 99, *NUMPY, "--json")
    assert (ran.code, ran.json["error"]["code"]) == (2, "parameter-range")
