"""A plan's times and memory are those that `edgert test --predict` says of the same graph."""

from __future__ import annotations

import msgspec
import pytest
from edgert.devices.load import load
from edgert.devices.profile import Product, Profile

from edgert.forecast.latency import prompt_seconds, step_seconds
from edgert.forecast.memory import TOKENIZER, footprint
from edgert.forecast.rates import rates_of
from edgert.forecast.shapes import Shape, decoder
from edgert.forecast.work import lowered, works
from edgert.planning.candidates import Candidate, costs_of, memory_of
from edgert.planning.cards import Card, Workload

from ..devices.test_profiles import measured

VOCABULARY, CONTEXT = 16384, 1024
CARD = Card("one", 12, 768, 12, 4, 64, 2048, VOCABULARY, 1e9)
BASE = 5e7


def probed() -> Profile:
    """A machine whose kernels differ: of 8 bits a third of the speed of 4, of 16 a tenth."""
    found = measured()
    flat = lambda rate: ((1e6, rate),)
    products = (
        Product("f16", flat(8e9), 2e10), Product("int4", flat(2e10), 3e11),
        Product("int8", flat(1.2e10), 1e11),
    )  # fmt: skip
    rates = msgspec.structs.replace(found.rates[0], products=products, values_s=1e11, rows_s=1e12)
    found = msgspec.structs.replace(found, rates=(rates,), base_bytes=BASE)
    return msgspec.structs.replace(load("laptop-avx2"), measured=found)


def shape(bits: int) -> Shape:
    """The card's graph, as conversion stores it."""
    encodings = {4: ("int4-g32", "int8-g32"), 8: ("int8-g32", "int8-g32"), 16: ("f16", "f16")}
    return Shape(12, 768, 12, 4, 64, 2048, VOCABULARY, *encodings[bits])


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_times_are_those_of_the_graph_that_will_be_stored(bits: int) -> None:
    profile, work = probed(), Workload(prompt_tokens=512, new_tokens=64, context=CONTEXT)
    one = Candidate(CARD.name, bits, 32, 0.0, 16)
    planned = costs_of(CARD, one, profile, work)
    rates = rates_of(profile)
    found = works(lowered(decoder(shape(bits)), threads=rates.threads))
    assert planned.token_s == pytest.approx(step_seconds(found, rates, depth=576), rel=0.1)
    assert planned.ttft_s == pytest.approx(prompt_seconds(found, rates, 512), rel=0.2)


def test_encodings_keep_their_own_speed() -> None:
    profile, work = probed(), Workload()
    each = [
        costs_of(CARD, Candidate(CARD.name, bits, 32, 0.0, 16), profile, work)
        for bits in (4, 8, 16)
    ]
    four, eight, sixteen = (costs.ttft_s for costs in each)
    assert eight > 2 * four
    assert sixteen > 3 * eight


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("kv_bits", [8, 16])
def test_memory_is_that_of_the_graph_that_will_be_stored(
    bits: int, kv_bits: int, tied: bool
) -> None:
    card = msgspec.structs.replace(CARD, tied=tied)
    one = Candidate(card.name, bits, 32, 0.0, kv_bits)
    total, _ = memory_of(card, one, Workload(context=CONTEXT), base=BASE)
    rest = total - BASE - TOKENIZER * 30 * VOCABULARY
    found = footprint(decoder(shape(bits)), tokens=CONTEXT, kv_bits=kv_bits, base=0.0)
    assert rest == pytest.approx(found.total, rel=0.05)


def test_the_probed_machine_says_what_a_process_takes() -> None:
    profile, work = probed(), Workload(context=CONTEXT)
    one = Candidate(CARD.name, 4, 32, 0.0, 16)
    here = costs_of(CARD, one, profile, work).memory
    more = msgspec.structs.replace(profile.measured, base_bytes=BASE + 1e7)
    other = costs_of(CARD, one, msgspec.structs.replace(profile, measured=more), work).memory
    assert other - here == pytest.approx(1e7)
