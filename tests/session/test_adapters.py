"""Adapters beside the weights: the logits of merged weights, batches of several, pages of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.kernels.low_rank import Fitted

from edgert.bundle import Bundle
from edgert.bundle.origins import read_origins
from edgert.bundle.peft import Adapter
from edgert.errors import RequestError
from edgert.session import Session, SessionOptions, open_session
from edgert.session.adapters import fit
from edgert.session.base import Feed
from tests.adapters import add_products, factors, shapes_of, write_adapter
from tests.closeness import assert_close, distance
from tests.converters.checkpoints import expected_logits, prompt, write_checkpoint

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
FUSED = (*ALL, "qkv_proj", "gate_up_proj")
CASES = ("llama", "phi3", "glm4", "granite")


def fitted(folder: Path, bundle: Bundle) -> Fitted:
    adapter = Adapter(folder)
    found = fit(adapter, bundle.graph(), read_origins(bundle))
    adapter.close()
    return found


def run(session: Session, ids: np.ndarray, key: str = "", *, chunk: int = 0) -> np.ndarray:
    """Logits of all rows."""
    state = session.new_state(len(ids))
    session.choose(state, key)
    rows, size = [], chunk or session.max_rows
    for at in range(0, len(ids), size):
        rows += [session.step([Feed(state, ids[at : at + size], "all")])[0].logits]
        state.commit(len(ids[at : at + size]))
    state.close()
    return np.concatenate(rows)


class Model:
    """A bundle and its adapters: `keys` of three, the second of which has the largest ranks and the
    third a few modules only."""

    def __init__(self, folder: Path, case: str, quant: str) -> None:
        import torch

        self.model = write_checkpoint(case, folder / "checkpoint")
        head = self.model.lm_head.weight.detach().clone()
        self.model.lm_head.weight = torch.nn.Parameter(head)  # adapters change one use of a table
        convert(
            folder / "checkpoint", folder / "out.edge", quant=quant, method="rtn", golden=False,
            progress=False,
        )  # fmt: skip
        self.bundle = Bundle.open(folder / "out.edge")
        shapes = shapes_of(self.model, FUSED)
        some = {name: shape for name, shape in shapes.items() if "layers.1" in name}
        self.arrays = [
            factors(shapes, rank=4, seed=1),
            factors(shapes, rank=20, seed=2),
            factors(some, rank=3, seed=3),
        ]
        self.folders = [
            write_adapter(folder / f"a{i}", arrays, r=rank, lora_alpha=2 * rank)
            for i, (arrays, rank) in enumerate(zip(self.arrays, (4, 20, 3), strict=True))
        ]

    def session(self, device: str, threads: int = 1) -> Session:
        return open_session(self.bundle, SessionOptions(device, threads=threads))

    def attached(self, session: Session, *numbers: int) -> list[str]:
        found = [fitted(self.folders[number], self.bundle) for number in numbers]
        for each in found:
            session.attach(each)
        return [each.key for each in found]


@pytest.fixture(scope="module", params=CASES)
def exact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Model(tmp_path_factory.mktemp(request.param), request.param, "f32")


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Model(tmp_path_factory.mktemp("coded"), "llama", "int4-g32")


@pytest.fixture(params=["reference", "cpu"])
def device(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_logits_are_those_of_merged_weights(exact: Model, device: str) -> None:
    """For 1, 63 and 500 tokens."""
    before = {name: value.clone() for name, value in exact.model.state_dict().items()}
    session = exact.session(device)
    keys = exact.attached(session, 0, 1)
    try:
        add_products(exact.model, exact.arrays[1], 2.0)
        for length in (1, 63, 500):
            ids = prompt(length)
            expected = expected_logits(exact.model, ids)
            got = run(session, ids, keys[1])
            assert np.std(got - run(session, ids)) > 0.1 * np.std(expected)
            assert_close(f"{length} tokens", expected, got, rms=1e-4)
    finally:
        exact.model.load_state_dict(before)
        session.close()


def test_a_batch_of_adapters_equals_each_alone(exact: Model) -> None:
    check_batch(exact)


def test_a_batch_of_adapters_equals_each_alone_with_codes(coded: Model) -> None:
    check_batch(coded)


def check_batch(model: Model) -> None:
    """Four requests, three adapters, prompts and tokens in one step, on one thread and two: every
    bit is that of the request alone; the one without is that of a session without adapters."""
    texts = [prompt(n, seed=n) for n in (90, 45, 70, 33)]
    plain = model.session("cpu")
    without = run(plain, texts[3])
    plain.close()
    for threads in (1, 2):
        session = model.session("cpu", threads)
        keys = [*model.attached(session, 0, 1, 2), ""]
        alone = [run(session, ids, key) for ids, key in zip(texts, keys, strict=True)]
        np.testing.assert_array_equal(alone[3], without)
        single = run(session, texts[1], keys[1], chunk=1)
        np.testing.assert_array_equal(single, alone[1])
        states = [session.new_state() for _ in texts]
        for state, key in zip(states, keys, strict=True):
            session.choose(state, key)
        got: list[list[np.ndarray]] = [[] for _ in texts]
        for step in range(40):
            feeds, lanes = [], []
            for lane, (state, ids) in enumerate(zip(states, texts, strict=True)):
                count = 31 if step == lane else 1 + (step + lane) % 3
                if piece := ids[state.length : state.length + count].tolist():
                    feeds.append(Feed(state, np.asarray(piece, np.int32), "all"))
                    lanes.append(lane)
            if not feeds:
                break
            for lane, feed, result in zip(lanes, feeds, session.step(feeds), strict=True):
                got[lane].append(result.logits)
                feed.state.commit(feed.rows)
        for lane, expected in enumerate(alone):
            np.testing.assert_array_equal(np.concatenate(got[lane]), expected)
        session.close()


def test_adapters_come_at_any_time(coded: Model) -> None:
    """One of larger ranks and other products, between two steps of others."""
    session = coded.session("cpu")
    (first,) = coded.attached(session, 2)
    ids = prompt(40)
    before, without = run(session, ids, first), run(session, ids)
    (second,) = coded.attached(session, 1)
    np.testing.assert_array_equal(run(session, ids, first), before)
    np.testing.assert_array_equal(run(session, ids), without)
    assert np.abs(run(session, ids, second) - before).max() > 0.1
    assert session.adapters.nbytes > 0  # type: ignore[attr-defined]
    session.close()


def test_a_cpu_session_is_close_to_the_reference(coded: Model) -> None:
    """With codes and float16 factors, as it is without adapters."""
    cpu, reference = coded.session("cpu"), coded.session("reference")
    ids = prompt(63)
    rows = [run(s, ids, coded.attached(s, 1)[0]) for s in (reference, cpu)]
    plain = [run(s, ids) for s in (reference, cpu)]
    without = distance(*plain)[0]
    assert without < 0.05
    assert_close("with", rows[0], rows[1], rms=2 * without)
    cpu.close()


def test_beginnings_are_shared_by_texts_of_one_adapter_only(coded: Model) -> None:
    session = coded.session("cpu")
    one, other = coded.attached(session, 0, 1)
    cache, ids = session.prefix_cache(), prompt(130)
    for key in ("", one):
        state = session.new_state()
        session.choose(state, key)
        session.step([Feed(state, ids, "none")])
        state.commit(len(ids))
        cache.keep(state, ids.tolist())
        state.close()
    tokens = ids.tolist()
    assert [cache.known(tokens, adapter=key) for key in ("", one, other)] == [128, 128, 0]
    resumed = session.new_state()
    session.choose(resumed, one)
    assert cache.resume(resumed, tokens) == 128
    got = session.step([Feed(resumed, ids[128:], "all")])[0].logits
    np.testing.assert_array_equal(got, run(session, ids, one)[128:])
    session.close()


def test_a_state_keeps_its_adapter(coded: Model, device: str) -> None:
    """In copies and snapshots; and takes one before its first token only."""
    session = coded.session(device)
    one, other = coded.attached(session, 0, 1)
    ids = prompt(20)
    state = session.new_state()
    session.choose(state, one)
    session.step([Feed(state, ids, "none")])
    state.commit(20)
    following = np.array([7], np.int32)
    expected = session.step([Feed(state, following)])[0].logits
    state.discard()
    copy = state.fork()
    np.testing.assert_array_equal(session.step([Feed(copy, following)])[0].logits, expected)
    back = session.new_state()
    with pytest.raises(RequestError, match="was made with adapter"):
        back.restore(state.snapshot())
    session.choose(back, one)
    back.restore(state.snapshot())
    np.testing.assert_array_equal(session.step([Feed(back, following)])[0].logits, expected)
    with pytest.raises(RequestError, match="expected an empty one"):
        session.choose(state, other)
    with pytest.raises(RequestError, match="is not attached"):
        session.choose(session.new_state(), "0" * 64)
    session.close()
