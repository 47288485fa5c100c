"""What the sample models score after compression: accuracy or nats per character, before and after.

Exits with 1 when `int8` costs a model more than half a point of accuracy or 0.01 nats.
"""

from __future__ import annotations

import sys
from pathlib import Path

import common
from common import HERE, modelzip, verdict

SAMPLES = HERE.parent / "sample_models"
SCHEMES = ("int8", "int4-g128", "int3", "int2-g64", "fixed8-mse", "binary")
MOST = {"accuracy (%)": 0.5, "nats per character": 0.01}  # the most that int8 may cost


def main() -> None:
    """Print a row for every checkpoint and scheme."""
    parser = common.parser(__doc__)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, metavar="SCHEME")
    options = parser.parse_args()
    sys.path.insert(0, str(SAMPLES))
    from evaluate import evaluate_state_dict

    from modelzip_cli import load_file

    print(common.versions("modelzip", "numpy", "torch"))
    missed = False
    rows = []
    with common.scratch(options.tmp) as folder:
        for source in sorted([*SAMPLES.glob("*.pth"), *SAMPLES.glob("*.safetensors")]):
            before = evaluate_state_dict(load_file(source))
            for scheme in options.schemes:
                small = folder / f"{source.stem}.{scheme}.safetensors"
                modelzip("quantize", source, "--scheme", scheme, "-o", small, "-q")
                after = evaluate_state_dict(load_file(small))
                change = after.value - before.value
                most = MOST[before.metric] if scheme == "int8" else None
                goal = ("", "") if most is None else (f"within {most}", verdict(abs(change) <= most))
                missed |= most is not None and abs(change) > most
                figures = [f"{before.value:.4f}", f"{after.value:.4f}", f"{change:+.4f}", times_smaller(source, small)]
                rows.append([source.name, scheme, before.metric, *figures, *goal])
    columns = ["checkpoint", "scheme", "metric", "before", "after", "change", "smaller", "goal", "reached"]
    common.print_table(
        "Sample models; `smaller` is file over file, and counts optimizer state that was left out", columns, rows
    )
    if missed:
        raise SystemExit(1)


def times_smaller(source: Path, small: Path) -> str:
    """Size of a file over that of another, as in `3.9x`."""
    return f"{source.stat().st_size / small.stat().st_size:.1f}x"


if __name__ == "__main__":
    main()
