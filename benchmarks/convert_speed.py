"""Seconds and peak memory of conversions, each in a process of its own.

    python benchmarks/convert_speed.py 135m [0.5b 1.1b ...] [--dtype bf16] [--quant int4]
        [--no-golden] [--json out.jsonl]

Checkpoints come from make_checkpoint.py. Without --no-golden the time holds compiling and running
the CPU session for the golden prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, the folder of this file stands first

from benchmarks.make_checkpoint import SHAPES, make_checkpoint  # noqa: E402

CHILD = """
import json, sys
from edgert.converters.convert import convert
source, out, quant, golden = sys.argv[1:5]
report = convert(source, out, quant=quant, method="rtn", golden=golden == "1")
keep = ("parameters", "source_bytes", "bundle_bytes", "seconds", "stages", "peak_rss", "golden")
print(json.dumps({key: getattr(report, key) for key in keep}))
"""


def measure(shape: str, dtype: str, quant: str, *, golden: bool) -> dict[str, Any]:
    """One conversion of a fresh random checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(shape, Path(folder) / shape, dtype=dtype)
        out = Path(folder) / "m.edge"
        command = [sys.executable, "-c", CHILD, checkpoint, out, quant, str(int(golden))]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return {"shape": shape, "dtype": dtype, "quant": quant, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--dtype", choices=("bf16", "f16", "f32"), default="bf16")
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--no-golden", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print("shape | source MB | bundle MB | seconds | peak RSS MB | stages")
    for shape in args.shapes:
        row = measure(shape, args.dtype, args.quant, golden=not args.no_golden)
        cells = [f"{row[key] / 1e6:.1f}" for key in ("source_bytes", "bundle_bytes")]
        stages = " ".join(f"{name} {spent:.1f}" for name, spent in row["stages"].items())
        peak = f"{row['peak_rss'] / 1e6:.0f}"
        print(" | ".join([shape, *cells, f"{row['seconds']:.1f}", peak, stages]), flush=True)
        if args.json:
            with open(args.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
