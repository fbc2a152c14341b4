"""Cache policies on a model that draws, at equal evaluations: who stays nearest to the uncached
picture, and who still draws what was asked.

    python -m benchmarks.image_caching demo.edge --processes 16      all rows; goes on where it was
    python -m benchmarks.image_caching demo.edge --tuning 8 --test 32 --out /tmp/quick.jsonl
    python -m benchmarks.image_caching --page                        IMAGE_CACHING.md, from the rows
    python -m benchmarks.image_caching demo.edge --pictures          image_caching.png

Flow Euler over 50 steps with shift 3 and guidance 3. Calibration, tuning and test have seeds and
prompts of their own; thresholds are chosen on the tuning seeds alone, so that the mean of
evaluations meets 25 or 21 within a half. Prompts are coloured-shape scenes of
`recipes/demo_image`, whose exact detector judges the drawings, where the model takes captions and
the recipe is there. References and calibration are kept in `--work`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import image_methods as methods
from benchmarks.image_measures import psnr, relative_l2, ssim
from benchmarks.image_prompts import Prompt, prompts_for, right
from benchmarks.image_runs import Draw, Drawn, Measure, Protocol, Record, Workers, joined
from benchmarks.machine import describe
from benchmarks.results import FOLDER
from edgert.image.policies import SenCache
from edgert.image.tables import SensitivityTable

RESULTS = FOLDER / "results" / "image_caching.jsonl"
MAIN, FEW = 16, 8  # calibration runs of the table in use, and of the small one
TARGETS = (25.0, 21.0)
Line = dict[str, Any]


@dataclass(frozen=True)
class Counts:
    """Runs for calibration, tuning and test."""

    calibration: int = 64
    tuning: int = 32
    test: int = 256


class Bench:
    """One model under one protocol."""

    def __init__(
        self, protocol: Protocol, counts: Counts, workers: Workers, *, out: Path, work: Path,
        scenes: bool = True,
    ) -> None:  # fmt: skip
        self.protocol, self.counts, self.workers, self.out = protocol, counts, workers, out
        model = workers.here.model
        self.model, self.fingerprint = model.name, model.fingerprint
        known = {**asdict(protocol), **asdict(counts), "scenes": scenes, "model": self.fingerprint}
        del known["bundle"], known["threads"]
        self.known = known
        self.key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
        self.work = work / self.key
        self.work.mkdir(parents=True, exist_ok=True)
        sets = {
            name: prompts_for(model, name, count, scenes=scenes)
            for name, count in asdict(counts).items()
        }
        self.calibration, self.tuning, self.test = sets.values()

    # --- what is done once ------------------------------------------------------------------------

    def tables(self) -> dict[int, SensitivityTable]:
        """Tables by the number of runs they were measured on."""
        sizes = sorted({min(n, self.counts.calibration) for n in (FEW, MAIN, 64)})
        files = {n: self.work / f"table-{n}.npz" for n in sizes}
        if all(file.exists() for file in files.values()):
            return {n: SensitivityTable.load(file) for n, file in files.items()}
        begin = time.perf_counter()
        jobs = [Measure(p.text, p.seed) for p in self.calibration]
        parts = self.workers.map(jobs)
        found = {}
        for n in sizes:
            table, quality = joined(parts[:n])
            found[n] = table
            table.save(files[n])
            print(f"table of {n} runs; TeaCache's fit explains {quality:.2f}", flush=True)
        print(f"calibration: {time.perf_counter() - begin:.0f} s", flush=True)
        return found

    def prepare(self) -> None:
        """Calibration and uncached runs, measured or read."""
        found = self.tables()
        total = self.protocol.steps
        self.table = found[min(MAIN, self.counts.calibration)]
        file = self.work / "tuning.npz"
        if not file.exists():
            policies = methods.replayable(self.table, TARGETS, total)
            begin = time.perf_counter()
            runs = self.workers.map([Record(p.text, p.seed, policies) for p in self.tuning])
            curves = {
                f"curve {name}": np.mean([r.evaluations[name] for r in runs], axis=0)
                for name in policies
            }
            np.savez(
                file, pictures=np.stack([r.drawn.picture for r in runs]),
                seconds=np.array([r.drawn.seconds for r in runs]),
                xs=np.stack([r.xs for r in runs]), **curves,
            )  # fmt: skip
            print(f"tuning references: {time.perf_counter() - begin:.0f} s", flush=True)
        with np.load(file) as held:
            self.tuning_pictures, self.xs = held["pictures"], held["xs"]
            self.seconds = float(held["seconds"].mean())
            self.curves = {n[6:]: held[n] for n in held.files if n.startswith("curve ")}
        file = self.work / "test.npz"
        if not file.exists():
            print(f"test references: about {self.estimate(total, len(self.test)):.0f} s")
            drawn: list[Drawn] = self.workers.map([Draw(p.text, p.seed) for p in self.test])
            np.savez(
                file, latents=np.stack([d.latent for d in drawn]),
                pictures=np.stack([d.picture for d in drawn]),
                seconds=np.array([d.seconds for d in drawn]),
            )  # fmt: skip
        with np.load(file) as held:
            self.latents, self.pictures = held["latents"], held["pictures"]
            self.seconds = float(held["seconds"].mean())
        self.append({
            "kind": "reference", "right": right(self.test, list(self.pictures)),
            "processes": self.workers.processes, "seconds": round(self.seconds, 3),
        })  # fmt: skip
        self.append({"kind": "agreement", **self.agreement(found)})

    def agreement(self, found: dict[int, SensitivityTable]) -> Line:
        """Equal decisions by the smallest and the largest table, on the tuning runs' latents, at
        the threshold of each target."""
        few, many = min(found), max(found)
        shares = {}
        for target in TARGETS:
            most = 2 if target >= self.protocol.steps / 2 else 3
            epsilon = methods.between(self.curves[f"SenCache {most} 0.2"], target)
            made = [self._decisions(found[n], epsilon, most) for n in (few, many)]
            shares[f"{target:g}"] = round(float(np.mean(made[0] == made[1])), 4)
        correlations = {
            name: round(
                float(np.corrcoef(*(getattr(found[n], name) for n in (few, many)))[0, 1]), 4
            )
            for name in ("alpha_x", "alpha_t_rms")
        }
        return {"runs": [few, many], "agreement": shares, "correlation": correlations}

    def _decisions(self, table: SensitivityTable, epsilon: float, most: int) -> Any:
        sampler = self.workers.here.sampler()
        policy = SenCache(table=table, epsilon=epsilon, most=most)
        return np.array([methods.decisions(policy, xs, sampler) for xs in self.xs])

    # --- rows -------------------------------------------------------------------------------------

    def estimate(self, evaluations: float, drawings: int) -> float:
        """Seconds for so many drawings."""
        share = evaluations / self.protocol.steps
        return self.seconds * share * drawings / max(1, self.workers.processes)

    def trial(self, candidate: methods.Candidate) -> tuple[float, float]:
        """Evaluations and PSNR of a candidate on the tuning seeds."""
        drawn = self.draw(candidate, self.tuning)
        near = [psnr(d.picture, r) for d, r in zip(drawn, self.tuning_pictures, strict=True)]
        return float(np.mean([d.computed.sum() for d in drawn])), float(np.mean(near))

    def draw(self, one: methods.Candidate, prompts: Sequence[Prompt]) -> list[Drawn]:
        jobs = [Draw(p.text, p.seed, one.policy, one.mode, one.steps) for p in prompts]
        return self.workers.map(jobs)

    def row(self, name: str, target: float) -> None:
        """Tune a method, draw the test set, write the line."""
        if any(x["kind"] == "row" and (x["method"], x["target"]) == (name, target)
               for x in self.lines()):  # fmt: skip
            print(f"{name} at {target:g}: there already", flush=True)
            return
        options = methods.candidates(name, self.table, target, self.protocol.steps)
        runs = sum(3 if one.key else 1 for one in options) * len(self.tuning) + len(self.test)
        print(f"{name} at {target:g}: about {self.estimate(target, runs):.0f} s", flush=True)
        begin = time.perf_counter()
        found = [methods.tuned(one, target, self.curves.get(one.key), self.trial)
                 for one in options]  # fmt: skip
        reached = [one for one in found if abs(one.evaluations - target) <= methods.TOLERANCE]
        if not found:
            return print(f"{name}: this model does not serve it", flush=True)
        best = max(reached or found, key=lambda one: one.psnr)
        drawn = self.draw(best.candidate, self.test)
        line = self.measured(drawn)
        self.append({
            "kind": "row", "method": name, "target": target, "settings": best.candidate.settings(),
            "tuning": {"evaluations": round(best.evaluations, 3), "psnr": round(best.psnr, 3),
                       "tried": sum(one.tried for one in found)},
            **line,
        })  # fmt: skip
        print(
            f"{name} at {target:g}: {np.mean(line['evaluations']):.2f} evaluations, PSNR "
            f"{np.mean(line['psnr']):.2f} (median {np.median(line['psnr']):.2f}), "
            f"{time.perf_counter() - begin:.0f} s", flush=True,
        )  # fmt: skip

    def measured(self, drawn: Sequence[Drawn]) -> Line:
        """Figures of every drawing of the test set."""
        pairs = list(zip(drawn, self.pictures, self.latents, strict=True))
        return {
            "evaluations": [int(d.computed.sum()) for d in drawn],
            "psnr": [round(psnr(d.picture, p), 3) for d, p, _ in pairs],
            "ssim": [round(ssim(d.picture, p), 5) for d, p, _ in pairs],
            "l2": [round(relative_l2(d.latent, z), 5) for d, _, z in pairs],
            "right": right(self.test, [d.picture for d in drawn]),
            "seconds": round(float(np.mean([d.seconds for d in drawn])), 3),
        }

    def lines(self) -> list[Line]:
        """What the results hold of this protocol."""
        if not self.out.exists():
            return []
        texts = self.out.read_text(encoding="utf-8").splitlines()
        return [x for x in map(json.loads, filter(None, texts)) if x["key"] == self.key]

    def append(self, line: Line) -> None:
        once = line["kind"] != "row"
        if once and any(x["kind"] == line["kind"] for x in self.lines()):
            return
        whole = {"key": self.key, "model": self.model, "protocol": self.known, **line,
                 "machine": describe()}  # fmt: skip
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(whole, separators=(",", ":")) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--page", action="store_true", help="write the page of tables")
    parser.add_argument("--pictures", action="store_true", help="draw the page's pictures")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=list(methods.METHODS))
    parser.add_argument("--targets", type=float, nargs="+", default=list(TARGETS))
    for name, count in asdict(Counts()).items():
        parser.add_argument(f"--{name}", type=int, default=count, help="runs")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--no-scenes", action="store_true", help="built-in prompts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="default: beside the bundle")
    args = parser.parse_args()
    if args.bundle is not None:
        protocol = Protocol(str(args.bundle), args.steps, args.guidance, args.shift)
        counts = Counts(args.calibration, args.tuning, args.test)
        work = args.work or args.bundle.with_name(args.bundle.name + ".caching")
        with Workers(protocol, args.processes) as workers:
            bench = Bench(
                protocol, counts, workers, out=args.out, work=work, scenes=not args.no_scenes
            )
            bench.prepare()
            if args.pictures:
                from benchmarks.image_sheet import draw_sheet

                draw_sheet(bench)
            else:
                for target in args.targets:
                    for name in args.methods:
                        bench.row(name, target)
                bench.row("Fixed-2", 26.0)
    if args.page:
        from benchmarks.image_caching_page import write_page

        write_page(args.out)


if __name__ == "__main__":
    main()
