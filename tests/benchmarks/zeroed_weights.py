"""Whether `verify` notices a weight that is lost: each weight of each trained checkpoint zeroed in turn.

    python tests/benchmarks/zeroed_weights.py [NAME]... [--precision int4 int8] [--work FOLDER]

Takes some minutes on two cores. Bundles are kept in the folder, and those that are there are used. The
status is 1 if a sound bundle fails or a bundle with a zeroed weight passes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "checkpoints")]
from held_out import FAMILIES  # noqa: E402
from onnx_vlm.export import export_model  # noqa: E402
from onnx_vlm.runtime.providers.load_options import LoadOptions  # noqa: E402
from onnx_vlm.runtime.verify import Check, verify  # noqa: E402
from zeroed import quantised_weights, zeroed  # noqa: E402

ONE_THREAD = LoadOptions(threads=1)


def largest(checks: list[Check]) -> float:
    """The largest error of a stage, as a share of what is allowed."""
    return max(check.error / check.tolerance for check in checks if check.precision and check.name != "tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--precision", nargs="*", default=["int4", "int8"])
    parser.add_argument("--work", type=Path, help="where bundles are written; a temporary folder if left out")
    options = parser.parse_args()
    failed = False
    print("| checkpoint | precision | sound: error / allowed | weights | caught | least error / allowed | of |")
    print("|---|---|---|---|---|---|---|")
    for name in options.names:
        for precision in options.precision:
            with tempfile.TemporaryDirectory() as temporary:
                bundle = (options.work or Path(temporary)) / precision / name
                bundle.parent.mkdir(parents=True, exist_ok=True)
                if not bundle.exists():
                    export_model(TESTS / "checkpoints" / name, bundle, precision=precision)
                sound = verify(bundle, ONE_THREAD)
                errors, caught = {}, 0
                for graph, weight in quantised_weights(bundle):
                    with zeroed(bundle, graph, weight):
                        checks = verify(bundle, ONE_THREAD)
                    caught += not all(check.passed for check in checks)
                    errors[f"{graph} {weight.removesuffix('.weight.T')}"] = largest(checks)
            least = min(errors, key=errors.__getitem__)
            failed = failed or caught < len(errors) or not all(check.passed for check in sound)
            row = f"{largest(sound):.2f} | {len(errors)} | {caught} | {errors[least]:.1f} | {least}"
            print(f"| {name} | {precision} | {row} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
