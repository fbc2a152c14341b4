"""Add an ONNX model to a bundle and answer through onnxruntime.

    pip install "edgert[convert]"
    python examples/export_onnx.py [BUNDLE] FOLDER

FOLDER becomes a copy of the bundle with `model.onnx` beside its weights (some kilobytes: it names
the bundle's own weights file). The answer of onnxruntime's CPU provider is then compared with that
of edgert's kernels. On a machine with a GPU say device="cuda" instead of "ort-cpu".
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import edgert
from edgert.demo import demo_bundle

PROMPT = "Once upon a time there was a small fox"


def main() -> None:
    *given, folder = sys.argv[1:]
    source, target = Path(given[0]) if given else demo_bundle(), Path(folder)
    shutil.copytree(source, target)
    subprocess.run([sys.executable, "-m", "edgert", "export", str(target)], check=True)
    answers, logits = [], []
    for device in ("cpu", "ort-cpu"):
        with edgert.load(target, device=device) as model:
            answer = model.generate(PROMPT, max_tokens=24, temperature=0)
            print(f"{device}:{answer.text}")
            answers.append(answer.text)
            logits.append(model.logits(model.tokenize(PROMPT)))
    apart = np.linalg.norm(logits[0] - logits[1]) / np.linalg.norm(logits[0])
    print(f"logits {apart:.2%} apart, texts {'equal' if answers[0] == answers[1] else 'differ'}")


if __name__ == "__main__":
    main()
