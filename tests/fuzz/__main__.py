"""Give every part damaged input, and count what comes of it.

python -m tests.fuzz --minutes 30
python -m tests.fuzz --only images --cases 100000
python -m tests.fuzz --replay images 4711
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

#: Where each target is: a module, and a name in it.
TARGETS = {
    "manifests": ("bundles", "MANIFESTS"),
    "bundles": ("bundles", "TARGET"),
    "images": ("images", "TARGET"),
    "videos": ("videos", "TARGET"),
    "checkpoints": ("checkpoints", "TARGET"),
    "command_lines": ("command_lines", "TARGET"),
    "options": ("options", "TARGET"),
}


def main() -> int:
    """Run a campaign; 1 if a case failed."""
    arguments = _arguments()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not outlive a fork
    os.environ["HF_HUB_OFFLINE"] = "1"
    from . import bundles, campaign

    bundles.BASES.extend(arguments.bundle)
    seed, cases, only = arguments.seed, arguments.cases, arguments.only or list(TARGETS)
    if arguments.replay:
        only, seed, cases = [arguments.replay[0]], int(arguments.replay[1]), 1
    targets = [getattr(importlib.import_module(f".{TARGETS[name][0]}", __package__), TARGETS[name][1]) for name in only]
    total = 60 * arguments.minutes / sum(target.share for target in targets)
    console, tallies = Console(stderr=True, highlight=False), {}
    with console.status("begin") as status:
        for target in targets:
            tally = tallies[target.name] = campaign.Tally()
            started = time.monotonic()
            seconds = float("inf") if cases else total * target.share
            for outcome in campaign.run(target, seed, cases, seconds):
                tally.add(outcome)
                tally.seconds = time.monotonic() - started
                count, failed = tally.words.total(), len(tally.failures)
                status.update(f"{target.name}: {count} cases, {failed} failed, {tally.seconds:.0f} s")
                if outcome.failure is not None:
                    saved = campaign.save(target, outcome, arguments.failures)
                    console.print(f"{target.name} {outcome.seed}: {outcome.word}, saved in {saved}", markup=False)
                    lines = outcome.failure.splitlines()[-1 if failed > 20 else -8 :]
                    console.print("\n".join(lines), markup=False, soft_wrap=True)
    Console(width=None if sys.stdout.isatty() else 120).print(table(tallies))
    return 1 if any(tally.failures for tally in tallies.values()) else 0


def table(tallies: dict) -> Table:
    """The number of cases by target and outcome."""
    shown = Table("target", "outcome")
    shown.add_column("cases", justify="right")
    shown.add_column("seconds", justify="right")
    for name, tally in tallies.items():
        for word, count in sorted(tally.words.items(), key=lambda item: -item[1]):
            shown.add_row(name, word, f"{count:,}")
        shown.add_row(name, "all", f"{tally.words.total():,}", f"{tally.seconds:.0f}", style="bold", end_section=True)
    return shown


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1, help="for all targets together (%(default)s)")
    parser.add_argument("--cases", type=int, help="of each target, instead of a time")
    parser.add_argument("--seed", type=int, default=0, help="of the first case (%(default)s)")
    parser.add_argument("--only", action="append", choices=TARGETS, help="one target; may be given several times")
    parser.add_argument(
        "--bundle", action="append", type=Path, default=[], help="one more bundle, to damage and to ask"
    )
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "SEED"), help="run one case again")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="a folder (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
