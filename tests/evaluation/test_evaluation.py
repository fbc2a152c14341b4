"""Log-likelihoods, perplexity and zero-shot tasks against plain computations."""

from __future__ import annotations

import gzip
import json
import lzma
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert.bundle import Bundle
from edgert.errors import DeviceError, RequestError
from edgert.evaluation.corpora import HELD_OUT_NOVELS, load_text
from edgert.evaluation.perplexity import (
    read_documents,
    read_text,
    score_text,
    window_sizes,
    windows,
)
from edgert.evaluation.scoring import Request, Scorer
from edgert.evaluation.zeroshot import TASKS, encode_pair, load_task, score_task
from edgert.session import SessionOptions, open_session
from edgert.session.base import Feed, Session
from edgert.session.reference import ReferenceSession
from edgert.text.tokenizer import Tokenizer

from ..tiny import BOS, tiny_bundle, tiny_graph, tiny_weights

CONTEXT = 128


@pytest.fixture(scope="module")
def session() -> Session:
    """Small steps, so that everything has to be cut in pieces."""
    graph = tiny_graph(quant="f32", context=CONTEXT)
    return ReferenceSession(graph, tiny_weights(graph), max_rows=16)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    with Bundle.open(tiny_bundle(tmp_path_factory.mktemp("b") / "tiny.edge")) as bundle:
        return Tokenizer.from_bundle(bundle)


def plain(session: Session, ids: tuple[int, ...], first: int) -> tuple[float, bool]:
    """log P(ids[first:] | ids[:first]), token by token; and whether argmax agrees all along."""
    state = session.new_state()
    total, greedy = 0.0, True
    for at, token in enumerate(ids[:-1]):
        row = session.step([Feed(state, np.array([token], np.int32))])[0].logits
        state.commit(1)
        if at + 1 >= first:
            z = row[0].astype(np.float64)
            total += float(z[ids[at + 1]] - z.max() - math.log(np.exp(z - z.max()).sum()))
            greedy &= int(z.argmax()) == ids[at + 1]
    state.close()
    return total, greedy


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_computes_no_numbers_gets_no_score(
    tokenizer: Tokenizer, shared_data: Path, value: float
) -> None:
    graph = tiny_graph(quant="f32", context=CONTEXT)
    weights = tiny_weights(graph)
    name = next(name for name, array in weights.items() if array.ndim == 1)
    weights[name] = np.full_like(weights[name], value)
    broken = ReferenceSession(graph, weights, max_rows=16)
    examples = load_task("blimp", shared_data, limit=1)
    with np.errstate(all="ignore"):
        for score in (
            lambda: score_text(broken, tokenizer, ["some text"], start=BOS),
            lambda: score_task(broken, tokenizer, "blimp", examples, start=BOS),
        ):
            with pytest.raises(DeviceError, match=r"log-likelihood of (nan|inf|-inf)") as caught:
                score()
            assert caught.value.code == "logits"


def test_a_hopeless_model_has_a_finite_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgert.evaluation import zeroshot

    hopeless = [[zeroshot.Score(-1e6, False)]]
    example = zeroshot.Example((("a", "b"),), 0, (1,), "")
    assert math.isfinite(zeroshot._metrics(["perplexity"], [example], hopeless)["perplexity"])


def tokens(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(4, 260, count))


@pytest.mark.parametrize("sizes", [[(1, 1)], [(3, 40), (30, 2), (1, 1), (127, 1), (60, 60)]])
def test_scores_are_those_of_one_token_at_a_time(
    session: Session, sizes: list[tuple[int, int]]
) -> None:
    rng = np.random.default_rng(1)
    requests = [Request(tokens(rng, a), tokens(rng, b)) for a, b in sizes]
    shared = tokens(rng, 20)
    requests += [Request(shared, tokens(rng, n)) for n in (1, 5, 33, *range(1, 9))]
    requests += [Request((1,), tokens(rng, n)) for n in (4, 5, 6)]
    alike = tokens(rng, 24)  # longer than a step of the session: cut inside the shared part
    for front, end in ((24, 3), (24, 1), (24, 0), (20, 6), (24, 0), (1, 1), (2, 30), (2, 1)):
        requests.append(Request((1,), (*alike[:front], *tokens(rng, end))))
    scores = Scorer(session).score(requests)
    for request, score in zip(requests, scores, strict=True):
        logprob, greedy = plain(
            session, request.context + request.continuation, len(request.context)
        )
        assert score.logprob == pytest.approx(logprob, abs=1e-3)
        assert score.greedy == greedy


def test_short_requests_share_steps(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = session.step
    monkeypatch.setattr(session, "step", lambda feeds: (steps.append(len(feeds)), step(feeds))[1])
    Scorer(session).score([Request((1,), (n, 3)) for n in range(4, 12)])
    assert len(steps) <= 8 * 64 // CONTEXT + 1


def test_continuations_that_begin_alike_compute_that_once(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    step = session.step

    def counted(feeds: list[Feed]) -> Any:
        fed.extend(len(feed.tokens) for feed in feeds)
        return step(feeds)

    monkeypatch.setattr(session, "step", counted)
    good, bad = (5, 6, 7, 8, 9), (5, 6, 7, 4, 9)
    Scorer(session).score([Request((1,), good), Request((1,), bad), Request((1,), good)])
    assert sum(fed) == 5 + 2 + 2


def test_greedy_is_seen(session: Session) -> None:
    context, answer = (5, 9), []
    state = session.new_state()
    feed = np.array(context, np.int32)
    for _ in range(4):
        row = session.step([Feed(state, feed)])[0].logits
        state.commit(len(feed))
        answer.append(int(row[-1].argmax()))
        feed = np.array(answer[-1:], np.int32)
    wrong = (*answer[:-1], (answer[-1] + 1) % 260)
    scores = Scorer(session).score([Request(context, tuple(answer)), Request(context, wrong)])
    assert [score.greedy for score in scores] == [True, False]


@pytest.mark.parametrize("request_", [Request((), (1,)), Request((1,), ())])
def test_empty_requests_are_refused(session: Session, request_: Request) -> None:
    with pytest.raises(RequestError, match="one of each at least"):
        Scorer(session).score([request_])


def test_states_are_closed_when_scoring_fails(session: Session) -> None:
    long = Request((1,) * CONTEXT, (2,) * 2)
    with pytest.raises(RequestError, match="do not fit the context"):
        Scorer(session).score([long])


@pytest.mark.parametrize(
    ("count", "window", "stride"),
    [(1, 8, 4), (8, 8, 4), (9, 8, 4), (50, 8, 8), (50, 8, 1), (7, 9, 2)],
)
def test_windows_score_everything_once(count: int, window: int, stride: int) -> None:
    seen: list[int] = []
    for begin, first, end in windows(count, window, stride):
        assert end - begin <= window
        assert begin == 0 or first - begin >= window - stride
        seen += range(first, end)
    assert seen == list(range(count))


@pytest.mark.parametrize(("window", "stride"), [(0, None), (CONTEXT + 1, None), (8, 9), (8, 0)])
def test_impossible_windows_are_refused(window: int, stride: int | None) -> None:
    with pytest.raises(RequestError, match="1 <= stride <= window <= 128"):
        window_sizes(CONTEXT, window, stride)


def test_perplexity_of_a_text(session: Session, tokenizer: Tokenizer) -> None:
    text = "A little text, é and all. " * 5
    score = score_text(session, tokenizer, [text, "b"], start=BOS, window=64, stride=64)
    ids = (BOS, *tokenizer.encode(text))
    nll = 0.0
    for begin, first, end in windows(len(ids) - 1, 64, 64):
        nll -= plain(session, ids[begin : end + 1], first - begin + 1)[0]
    nll -= plain(session, (BOS, *tokenizer.encode("b")), 1)[0]
    size = len((text + "b").encode())
    assert (score.tokens, score.bytes, score.documents) == (size, size, 2)  # one token a byte
    assert score.nll_per_token == pytest.approx(nll / size, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nll / size / math.log(2), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nll / size), rel=1e-4)
    assert (score.window, score.stride) == (64, 64)


def test_an_empty_text_is_refused(session: Session, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="no token to score"):
        score_text(session, tokenizer, [], start=BOS)


def test_documents_of_files(tmp_path: Path) -> None:
    plain_file, lines, packed = tmp_path / "a.txt", tmp_path / "a.jsonl.gz", tmp_path / "a.txt.xz"
    plain_file.write_text("one<|x|>\ntwo\n<|x|>", encoding="utf-8")
    lines.write_bytes(gzip.compress(b'"one\xe2\x80\xa8"\n{"text": "two"}\n'))
    packed.write_bytes(lzma.compress(b"drei"))
    assert read_documents(plain_file) == ["one<|x|>\ntwo\n<|x|>"]
    assert read_documents(plain_file, split="<|x|>") == ["one", "two"]
    assert read_documents(lines) == ["one\u2028", "two"]
    assert read_documents(packed) == ["drei"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("absent.txt", None, "cannot be read"),
        ("bad.txt", b"ok \xff", "byte 3 is not UTF-8"),
        ("cut.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "cannot be read"),
        ("bad.txt.xz", b"no xz", "cannot be read"),
        ("bad.jsonl", b'{"title": 1}', 'an object with "text"'),
        ("worse.jsonl", b"{", "line 1 is not JSON"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(RequestError, match=said):
        read_documents(path)


def test_a_text_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgert.limits.EVAL_BYTES", 10)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"x" * 11))
    with pytest.raises(RequestError, match="more than 10 bytes"):
        read_text(path)


ROWS: dict[str, list[dict[str, Any]]] = {
    "blimp": [
        {"sentence_good": "A cat is", "sentence_bad": "A cat are", "UID": "agreement"},
        {"sentence_good": "Dogs are", "sentence_bad": "Dogs is", "UID": "agreement"},
        {"sentence_good": "I eat it", "sentence_bad": "I eat", "UID": "argument"},
    ],
    "lambada": [{"context": "We go to the", "continuation": "sea"}],
    "piqa": [{"query": "Question: how?\n", "choices": ["so", "not so"], "gold": 1}],
    "arc-easy": [{"query": "Question: why?", "choices": ["a", "b", "c", "d"], "gold": 2}],
    "copa": [{"query": "It rained, because", "choices": ["of clouds.", "x."], "gold": 0}],
    "winogrande": [{"context_options": ["Ann", "Bob"], "continuation": "won.", "gold": 1}],
    "openbookqa": [{"query": "The sun is", "choices": ["hot", "cold"], "gold": 0}],
}
FIRST_PAIRS = {
    "blimp": ("", " A cat is"),
    "lambada": ("We go to the", " sea"),
    "piqa": ("Question: how?\nAnswer:", " so"),
    "arc-easy": ("Question: why?\nAnswer:", " a"),
    "copa": ("It rained because", "  of clouds."),
    "winogrande": ("Ann", " won."),
    "openbookqa": ("The sun is", " hot"),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, rows in ROWS.items():
        folder = tmp_path / ("bench-blimp" if name == "blimp" else "bench-zeroshot")
        folder.mkdir(exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{TASKS[name].file}.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_is_scored_as_defined(
    session: Session, tokenizer: Tokenizer, data: Path, name: str
) -> None:
    examples = load_task(name, data)
    assert examples[0].pairs[0] == FIRST_PAIRS[name]
    found = score_task(session, tokenizer, name, examples, start=BOS)
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for example in examples:
        scores = []
        for context, answer in example.pairs:
            front = tuple(tokenizer.encode(context)) if context else (BOS,)
            scores.append(plain(session, (*front, *tokenizer.encode(answer)), len(front)))
        values = [logprob for logprob, _ in scores]
        best = int(np.argmax(values))
        right["acc"].append(scores[0][1] if len(scores) == 1 else best == example.gold)
        norm = int(np.argmax(np.array(values) / example.lengths))
        right["acc_norm"].append(norm == example.gold)
    assert set(found.metrics) - {"acc_stderr"} == set(TASKS[name].metrics)
    for metric in set(TASKS[name].metrics) & set(right):
        assert found.metrics[metric] == np.mean(right[metric])
    if name == "lambada":
        assert found.metrics["perplexity"] == pytest.approx(math.exp(-scores[0][0]), rel=1e-4)
    if name == "blimp":
        assert set(found.groups) == {"agreement", "argument"}
        spread = math.sqrt(np.var(right["acc"], ddof=1) / 3)
        assert found.metrics["acc_stderr"] == pytest.approx(spread)


def test_a_limit_takes_the_first_of_each_paradigm(data: Path) -> None:
    groups = [example.group for example in load_task("blimp", data, limit=1)]
    assert groups == ["agreement", "argument"]


def test_pairs_are_cut_as_lm_eval_cuts_them(tokenizer: Tokenizer) -> None:
    def pair(context: str, answer: str, longest: int = 99) -> tuple[Request, bool]:
        return encode_pair(tokenizer, context, answer, start=BOS, longest=longest)

    spaced, truncated = pair("go  ", "to")
    assert spaced.context == tuple(tokenizer.encode("go"))
    assert spaced.continuation == tuple(tokenizer.encode("  to"))
    assert not truncated
    assert pair("", "to")[0].context == (BOS,)
    cut, truncated = pair("abcdef", "gh", longest=4)
    assert (cut.context, truncated) == (tuple(tokenizer.encode("def")), True)
    with pytest.raises(RequestError, match="answer of 5 tokens, expected 1 to 4"):
        pair("a", "bcdef", longest=4)


def test_tokens_that_reach_over_the_border() -> None:
    class Merging:
        """Encodes "you, Sara" as one token, "you," as two."""

        prefix = ()

        def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
            return {"you,": [4, 5], "you, Sara": [6], " Sara": [7, 8]}[text]

    found, _ = encode_pair(Merging(), "you,", " Sara", start=BOS, longest=9)
    assert found == Request((4, 5), (7, 8))


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("piqa", '{"choices": []}', "line 1 is not an example"),
        ("piqa", '{"query": "q", "choices": [], "gold": 0}', "answer 0 of 0 is the right one"),
        ("piqa", '{"query": "q", "choices": ["a", "b"], "gold": 2}', "answer 2 of 2"),
        ("piqa", '{"query": "q", "choices": ["a", "b"], "gold": -1}', "answer -1 of 2"),
        ("piqa", '{"query": "q", "choices": ["a", " "], "gold": 0}', "an answer is empty"),
        ("nothing", "{}", "is unknown, expected one of"),
        ("lambada", None, "no lambada_openai.jsonl"),
    ],
)
def test_bad_tasks_are_refused(tmp_path: Path, name: str, line: str | None, said: str) -> None:
    if line is not None:
        (tmp_path / "piqa.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(RequestError, match=said):
        load_task(name, tmp_path)


def test_texts_by_name(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text(
        " = One = \n\n a b \n = = Part = = \n c \n = Two = \n d", encoding="utf-8"
    )
    assert load_text("wikitext2", tmp_path) == [
        " = One = \n\n a b \n = = Part = = \n c \n",
        " = Two = \n d",
    ]
    assert load_text("wikipedia", tmp_path)[0] == "= One ="
    novel = "word " * 7000
    (tmp_path / "text-novels").mkdir()
    packed = lzma.compress(f"= A_B_1900 =\nx\n= Doyle_Hound_1902 =\n{novel}".encode())
    (tmp_path / "text-novels" / "train.txt.xz").write_bytes(packed)
    pieces = load_text("novels", tmp_path)
    assert "".join(pieces) == novel.strip()
    assert [len(piece) for piece in pieces[:-1]] == [16_005, 16_005][: len(pieces) - 1]
    (tmp_path / "train.txt.xz").write_bytes(lzma.compress(b"= A_B_1900 =\nx"))
    (tmp_path / "text-novels" / "train.txt.xz").unlink()
    for name, said in (
        ("novels", "holds no document"),
        ("wikitext2-test", "no test.txt"),
        ("poems", "is unknown"),
    ):
        with pytest.raises(RequestError, match=said):
            load_text(name, tmp_path)


def test_texts_are_those_the_demo_model_was_kept_from(shared_data: Path) -> None:
    """The recipe and `edgert eval` cut the same documents from the same files."""
    pytest.importorskip("torch")
    from recipes.demo_text import sources

    assert HELD_OUT_NOVELS == sources.HELD_OUT_NOVELS
    assert load_text("wikipedia", shared_data) == sources.wikipedia_valid(shared_data)
    assert load_text("wikitext2", shared_data) == sources.wikitext2(shared_data, "valid")
    assert "".join(load_text("novels", shared_data)) == "".join(
        sources.novels_held_out(shared_data)
    )


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """TinyStories-656K in float32."""
    from edgert.converters.convert import convert

    path = tmp_path_factory.mktemp("eval") / "stories.edge"
    source = shared_data / "lm-tinystories-656k"
    convert(source, path, quant="f32", progress=False, golden=False)
    with Bundle.open(path) as bundle:
        yield bundle


class FileEncoder:
    """A tokenizer.json as it stands."""

    def __init__(self, path: Path, prefix: tuple[int, ...]) -> None:
        from tokenizers import Tokenizer as Library

        self.library, self.prefix = Library.from_file(str(path)), prefix

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        return [int(token) for token in self.library.encode(text, add_special_tokens=bos).ids]


def test_a_published_perplexity_is_met(stories: Bundle, shared_data: Path) -> None:
    """The model's card in the shared data: 3.016 nats, five stories, BOS in front, 500 tokens, as
    tokenizer.json alone cuts them. transformers' LlamaTokenizer makes five tokens less of them, of
    which the model thinks better."""
    path = shared_data / "lm-tinystories-656k" / "tinystories_sample.txt"
    session = open_session(stories, SessionOptions(device="reference"))
    tokenizer = Tokenizer.from_bundle(stories)
    documents = read_documents(path, split="<|endoftext|>")
    raw = FileEncoder(shared_data / "lm-tinystories-656k" / "tokenizer.json", tokenizer.prefix)
    score = score_text(session, raw, documents, start=1, window=512, stride=512)
    assert score.documents == 5
    assert score.tokens == 853
    assert score.nll_per_token == pytest.approx(3.016, abs=6e-4)
    better = score_text(session, tokenizer, documents, start=1, window=512, stride=512)
    assert better.tokens == 848
    assert better.bits_per_byte < score.bits_per_byte


def test_a_trained_model_knows_some_grammar(stories: Bundle, shared_data: Path) -> None:
    """BLiMP through the CPU session: better than chance, and the reference session agrees."""
    tokenizer = Tokenizer.from_bundle(stories)
    examples = load_task("blimp", shared_data, limit=3)
    assert len(examples) == 3 * 67
    found = {}
    for device in ("cpu", "reference"):
        session = open_session(stories, SessionOptions(device=device))
        found[device] = score_task(session, tokenizer, "blimp", examples, start=1).metrics["acc"]
        session.close()
    print(f"BLiMP, 3 of each paradigm: {found}")
    assert found["cpu"] == pytest.approx(found["reference"], abs=1 / 201)
    assert found["cpu"] > 0.5


def test_what_quantization_costs(shared_data: Path, tmp_path: Path) -> None:
    """Perplexity on stories of float32, int8 and int4 weights, side by side."""
    from edgert.converters.convert import convert

    documents = read_documents(shared_data / "text-tinystories-sample" / "stories.jsonl.gz")[:20]
    found = {}
    for quant in ("f32", "int8", "int4"):
        path = tmp_path / f"{quant}.edge"
        source = shared_data / "lm-tinystories-656k"
        convert(source, path, quant=quant, method="rtn", progress=False, golden=False)
        with Bundle.open(path) as bundle:
            session, tokenizer = open_session(bundle), Tokenizer.from_bundle(bundle)
            found[quant] = score_text(session, tokenizer, documents, start=1).perplexity
            session.close()
    print("perplexity: " + ", ".join(f"{quant} {value:.3f}" for quant, value in found.items()))
    assert found["int8"] == pytest.approx(found["f32"], rel=0.01)
    assert found["f32"] < found["int4"] < 1.15 * found["f32"]
