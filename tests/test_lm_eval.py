"""Zero-shot numbers against EleutherAI's lm-eval itself, by hand: `pip install lm_eval[hf]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgert.bundle import Bundle
from edgert.scoring import Scorer
from edgert.session import open_session
from edgert.text.tokenizer import Tokenizer
from edgert.zeroshot import encode_pair, load_task, score_task

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


@pytest.mark.parametrize("name", ["blimp", "piqa", "arc-easy", "copa"])
def test_log_likelihoods_are_lm_evals(
    stories: Bundle, peer: Any, shared_data: Path, name: str
) -> None:
    from lm_eval.api.instance import Instance

    pairs = [pair for e in load_task(name, shared_data)[:EXAMPLES] for pair in e.pairs]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    expected = peer.loglikelihood(asked, disable_tqdm=True)
    session, tokenizer = open_session(stories), Tokenizer.from_bundle(stories)
    requests = [
        encode_pair(tokenizer, *pair, start=START, room=session.context)[0] for pair in pairs
    ]
    scores = Scorer(session).score(requests)
    session.close()
    for score, (logprob, greedy) in zip(scores, expected, strict=True):
        assert score.logprob == pytest.approx(logprob, abs=2e-3, rel=1e-4)
        assert score.greedy == greedy


def test_accuracy_is_lm_evals(
    stories: Bundle, peer: Any, shared_data: Path, tmp_path: Path
) -> None:
    """lm-eval's own piqa.yaml, its data taken from ours."""
    import lm_eval
    import yaml

    folder = Path(lm_eval.__file__).parent / "tasks" / "piqa"
    config = yaml.safe_load((folder / "piqa.yaml").read_text(encoding="utf-8"))
    examples = load_task("piqa", shared_data)[:EXAMPLES]
    rows = [
        {
            "goal": e.pairs[0][0].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "sol1": e.pairs[0][1][1:],
            "sol2": e.pairs[1][1][1:],
            "label": e.gold,
        }
        for e in examples
    ]
    file = tmp_path / "piqa.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    config |= {
        "task": "piqa_here", "dataset_path": "json", "training_split": None,
        "dataset_kwargs": {"data_files": {"validation": str(file)}},
    }  # fmt: skip
    theirs = lm_eval.simple_evaluate(model=peer, tasks=[config], bootstrap_iters=0)["results"]
    session, tokenizer = open_session(stories), Tokenizer.from_bundle(stories)
    ours = score_task(session, tokenizer, "piqa", examples, start=START).metrics
    session.close()
    for metric in ("acc", "acc_norm"):
        assert ours[metric] == pytest.approx(theirs["piqa_here"][f"{metric},none"])
