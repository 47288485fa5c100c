"""What compressed models still do, by `modelzip eval`: agreement with the original and KL to it, for every scheme.

    python benchmarks/evaluation.py [--write]

An image and a language sample. With `--write` the table goes into docs/quality.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import common
from common import HERE

SAMPLES = HERE.parent / "sample_models"
PAGE = HERE.parent / "docs" / "quality.md"
SCRIPT = "benchmarks/evaluation.py"
SCHEMES = (
    *("fp16", "bf16", "fp8", "int8", "int6-g128", "int5", "int4-g128", "int4-g32", "int4-g128-mse", "int3"),
    *("int2", "int2-g64", "nf4", "codebook4", "codebook3", "codebook2", "fixed8", "fixed6", "fixed4-mse"),
    *("ternary", "ternary-g64", "binary", "binary-m2"),
    *(f"ecq-s{step}" for step in (0.8, 0.55, 0.4, 0.28, 0.2, 0.14, 0.1, 0.05)),
    "lossless",
)
IMAGE = SAMPLES / "digits_cnn.pt2", ("--arch", SAMPLES / "digits_cnn.pt2", "--data", SAMPLES / "digits_test.npz")
TEXT = (
    SAMPLES / "docs_lm_trainer.pth",
    ("--arch", f"{SAMPLES / 'train.py'}:DocsLM", "--data", SAMPLES / "docs_test.npz"),
)


def evaluate(source: Path, options: Sequence[object], folder: Path) -> list[dict]:
    """The evaluations of the original and of every scheme, in order."""
    paths = [source]
    for scheme in SCHEMES:
        paths.append(folder / f"{source.stem}.{scheme}.safetensors")
        common.modelzip("quantize", source, "--scheme", scheme, "-o", paths[-1], "-q", "-f")
    command = [common.PROGRAM, "eval", *paths, *options, "--reference", source, "--json", "--no-progress", "-j", "1"]
    done = subprocess.run([*map(str, command)], capture_output=True, check=True)
    return [run["evaluation"]["after"] for run in json.loads(done.stdout)["runs"]]


def table(image: Sequence[dict], text: Sequence[dict]) -> list[tuple[str, ...]]:
    """A row a scheme."""
    rows = []
    for scheme, one, other in zip(("original", *SCHEMES), image, text, strict=True):
        rows.append(
            (
                scheme if scheme == "original" else f"`{scheme}`",
                f"{100 * one['accuracy']:.2f}",
                f"{100 * one['agreement']:.2f}",
                f"{one['kl']:.4f}",
                f"{other['nats']:.4f}",
                f"{other['perplexity-ratio']:.4f}",
                f"{100 * other['agreement']:.2f}",
                f"{other['kl']:.4f}",
            )
        )
    return rows


HEADS = (
    *("scheme", "`digits_cnn`: accuracy %", "agreement %", "KL"),
    *("`docs_lm`: nats", "perplexity-ratio", "agreement %", "KL"),
)


def main() -> int:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/quality.md")
    options = parser.parse_args()
    with common.scratch(options.tmp) as folder:
        rows = table(evaluate(*IMAGE, folder), evaluate(*TEXT, folder))
    lines = [HEADS, ("---", *["---:"] * (len(HEADS) - 1)), *rows]
    content = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(common.versions("modelzip", "torch"), content, sep="\n")
    if options.write:
        PAGE.write_text(common.fill(PAGE.read_text(), "evaluated", SCRIPT, content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
