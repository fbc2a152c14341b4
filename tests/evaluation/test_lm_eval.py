"""Zero-shot numbers against EleutherAI's lm-eval itself, by hand: `pip install lm_eval[hf]`.

pytest -m slow tests/test_lm_eval.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgert.bundle import Bundle
from edgert.evaluation.perplexity import read_text
from edgert.evaluation.scoring import Scorer
from edgert.evaluation.zeroshot import TASKS, Example, _find, encode_pair, load_task, score_task
from edgert.session import open_session
from edgert.text.tokenizer import Tokenizer

EXAMPLES = 60
START = 1
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # a foreign program's own affair
]


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from edgert.converters.convert import convert

    path = tmp_path_factory.mktemp("lm-eval") / "stories.edge"
    source = shared_data / "lm-tinystories-656k"
    convert(source, path, quant="f32", progress=False, golden=False)
    return Bundle.open(path)


@pytest.fixture(scope="module")
def peer(shared_data: Path) -> Any:
    """The same checkpoint in lm-eval, through transformers, float32.

    Its tokenizer is made from tokenizer.json as it stands: AutoTokenizer of transformers 5 builds a
    Llama tokenizer of its own, which prepends no space to a text that begins with one.
    """
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from transformers import PreTrainedTokenizerFast

    folder = shared_data / "lm-tinystories-656k"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<|start_story|>",
        eos_token="<|end_story|>",
    )
    return huggingface.HFLM(
        pretrained=str(folder), tokenizer=tokenizer, device="cpu", dtype="float32", batch_size=1,
    )  # fmt: skip


def rows_of(name: str, data: Path, peer: Any) -> list[tuple[dict[str, Any], Example]]:
    """The first rows of a task with what we read from them; less those that lm-eval cannot score,
    because a token reaches over the border between context and answer and leaves no answer."""
    lines = read_text(_find(data, TASKS[name].file)).split("\n")[:EXAMPLES]
    pairs = zip(map(json.loads, lines), load_task(name, data), strict=False)
    scored = lambda context, answer: not context or peer._encode_pair(context, answer)[1]
    rows = [(row, e) for row, e in pairs if all(scored(*pair) for pair in e.pairs)]
    assert len(rows) > EXAMPLES / 2
    return rows


@pytest.mark.parametrize("name", list(TASKS))
def test_log_likelihoods_are_lm_evals(
    stories: Bundle, peer: Any, shared_data: Path, name: str
) -> None:
    from lm_eval.api.instance import Instance

    pairs = [pair for _, e in rows_of(name, shared_data, peer) for pair in e.pairs]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    expected = peer.loglikelihood(asked, disable_tqdm=True)
    session, tokenizer = open_session(stories), Tokenizer.from_bundle(stories)
    requests = [
        encode_pair(tokenizer, *pair, start=START, longest=session.context)[0] for pair in pairs
    ]
    scores = Scorer(session).score(requests)
    session.close()
    for score, (logprob, greedy) in zip(scores, expected, strict=True):
        assert score.logprob == pytest.approx(logprob, abs=2e-3, rel=1e-4)
        assert score.greedy == greedy


CONNECTORS = {", because": "cause", ", therefore": "effect"}
FILES = {
    "blimp": "blimp/adjunct_island.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc-easy": "arc/arc_easy.yaml",
    "copa": "super_glue/copa/default.yaml",
    "winogrande": "winogrande/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}


def published(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of our file in the fields of the data set that lm-eval reads."""
    choices = row.get("choices", ())
    labelled = {"text": list(choices), "label": [*"ABCDEFGH"][: len(choices)]}
    if name == "blimp":
        return {key: row[key] for key in ("sentence_good", "sentence_bad")}
    if name == "lambada":
        return {"text": f"{row['context']} {row['continuation']}"}
    if name == "piqa":
        goal = row["query"].removeprefix("Question: ").removesuffix("\n")
        return {"goal": goal, "sol1": choices[0], "sol2": choices[1], "label": row["gold"]}
    if name == "arc-easy":
        question = row["query"].removeprefix("Question: ")
        key = labelled["label"][row["gold"]]
        return {"question": question, "choices": labelled, "answerKey": key}
    if name == "openbookqa":
        key = labelled["label"][row["gold"]]
        return {"question_stem": row["query"], "choices": labelled, "answerKey": key}
    if name == "copa":
        ending = next(text for text in CONNECTORS if row["query"].endswith(text))
        return {
            "premise": row["query"].removesuffix(ending) + ".",
            "question": CONNECTORS[ending],
            "choice1": choices[0],
            "choice2": choices[1],
            "label": row["gold"],
        }
    first, second = row["context_options"]  # whole beginnings: the gap comes first
    gold = str(row["gold"] + 1)
    sentence = f"_ {row['continuation']}"
    return {"sentence": sentence, "option1": first, "option2": second, "answer": gold}


@pytest.mark.parametrize("name", list(TASKS))
def test_metrics_are_lm_evals(
    stories: Bundle, peer: Any, shared_data: Path, tmp_path: Path, name: str
) -> None:
    """lm-eval's own task file: its prompts, choices and metrics, our rows as its data."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = Path(lm_eval.__file__).parent / "tasks"
    config = load_yaml(tasks / FILES[name])
    rows = rows_of(name, shared_data, peer)
    examples = [example for _, example in rows]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([published(name, row) for row, _ in rows]), encoding="utf-8")
    config |= {
        "task": "here", "dataset_path": "json", "dataset_name": None, "training_split": None,
        "validation_split": "validation", "test_split": None, "tag": None,
        "dataset_kwargs": {"data_files": {"validation": str(file)}},
    }  # fmt: skip
    theirs = lm_eval.simple_evaluate(model=peer, tasks=[config], bootstrap_iters=0)["results"]
    session, tokenizer = open_session(stories), Tokenizer.from_bundle(stories)
    ours = score_task(session, tokenizer, name, examples, start=START).metrics
    session.close()
    for metric in TASKS[name].metrics:
        assert ours[metric] == pytest.approx(theirs["here"][f"{metric},none"], rel=1e-4), metric
