"""Size against task quality: every sample model through every kind of scheme, measured on held-out data.

Writes the tables of docs/quality.md and the pictures beside it; the prose of that page is written by hand. The same
machine and versions give the same bytes again. Exits with 1 when `int8` costs a model more than half a point of
accuracy or 0.01 nats, when `int2` does not break the image model, or when pruning at random is not clearly worse than
by magnitude. `--pruning` measures and writes the section about pruning alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import quality_picture
import torch
import torch.nn.functional as F
from common import HERE
from numpy.typing import NDArray
from torch import Tensor, nn

SAMPLES = HERE.parent / "sample_models"
sys.path.insert(0, str(SAMPLES))
os.environ.setdefault("MODELZIP_KERNELS", "numba")  # the same bytes as numpy, and `ecq` is tried many times

from evaluate import SAMPLES as MODELS  # noqa: E402
from evaluate import Sample, shapes, widen  # noqa: E402
from train import predict  # noqa: E402

from modelzip_cli import load_file  # noqa: E402
from modelzip_cli.amounts import Pruning  # noqa: E402
from modelzip_cli.errors import Unreachable  # noqa: E402
from modelzip_cli.recipe import Goal, Recipe, Rule  # noqa: E402
from modelzip_cli.report import Report  # noqa: E402
from modelzip_cli.single import Settings, compress_file  # noqa: E402

PAGE = HERE.parent / "docs" / "quality.md"
PICTURES = PAGE.parent / "quality"
SOURCES = (
    "digits_cnn.pth",
    "digits_mlp.pth",
    "docstring_classifier.safetensors",
    "docs_lm.safetensors",
    "docs_lm_trainer.pth",
)
SCHEMES = (
    *("fp16", "bf16", "fp8"),
    *("int8", "int6-g128", "int5", "int4-g128", "int4-g32", "int4-g128-mse", "int3"),
    *("int2", "int2-g64", "int2-mse", "int2-g32-mse"),
    *("nf4", "codebook4", "codebook3", "codebook2"),
    *("fixed8", "fixed6", "fixed4-mse"),
    *("ternary", "ternary-g64", "binary", "binary-g64", "binary-m2", "binary-m2-g64"),
    *(f"ecq-s{step}" for step in (1.2, 0.8, 0.55, 0.4, 0.28, 0.2, 0.14, 0.1, 0.05)),
    "lossless",
)
FINEST = "ecq-s0.01"
MATCHED = ("int8", "int5", "int4-g128", "nf4", "codebook4", "int3", "codebook3", "int2", "codebook2", "binary")
WITHOUT_MATCHES = ("docs_lm_trainer.pth",)  # the weights of docs_lm.safetensors in float32
EVERYWHERE = ("int4-g128", "int2", "ecq-s0.2")  # once more, without the rules that keep some matrices at more bits
UNSPARED = ("int4-g128 everywhere", "int2 everywhere")  # met by `ecq` too
REPAIRED = ("int3", "int2", "int2-mse", "int2-g32-mse", "codebook2", "binary-m2", "ternary", "ternary-g64", "binary")
ORIGINAL = "original"
PRUNINGS = (  # what the table says, and what it is
    *(
        (f"{share:.0%}, {name}".replace("%", " %"), Pruning(sparsity=share, criterion=criterion, scope=scope))
        for share in (0.5, 0.7, 0.9)
        for name, criterion, scope in (
            ("`magnitude`, global", "magnitude", "global"),
            ("`magnitude`, layer", "magnitude", "layer"),
            ("`random`", "random", "layer"),
        )
    ),
    ("2:4, `magnitude`", Pruning(pattern="2:4")),
    ("2:4, `random`", Pruning(pattern="2:4", criterion="random")),
)
PRUNED_TOO = {"docstring_classifier": "embedding.weight"}  # 98 % of its weights, left alone by default
CLEARLY = 4  # standard errors by which magnitude must beat random at 70 %; at 90 % the image model is past saving
COPIES = {"digits_cnn": 4, "digits_mlp": 4}  # distorted pictures of one digit in the test set: not independent
INT8_MAY_COST = {"accuracy (%)": 0.5, "nats per character": 0.01}
INT2_MUST_COST = 20  # points of the image model, where no layer is spared


@dataclass(frozen=True)
class Cell:
    """One checkpoint through one scheme. `error`: standard error of `change`, paired: the same examples both times."""

    scheme: str
    bytes: int
    bits: float | None
    sqnr_db: float | None
    value: float
    change: float
    error: float


@dataclass(frozen=True)
class Match:
    """`ecq` in at most the bytes of `cell`: change is what it has more or less than that scheme, error is paired; None
    where no step on offer has that size."""

    cell: Cell
    ecq: Cell | None


@dataclass(frozen=True)
class Measured:
    """One checkpoint: its cells, the uncompressed one first."""

    source: Path
    sample: Sample
    cells: tuple[Cell, ...]
    matches: tuple[Match, ...] = ()

    @property
    def better(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.sample.metric.startswith("accuracy") else -1

    @property
    def digits(self) -> int:
        """Decimals of the metric."""
        return 2 if self.better == 1 else 4

    def cell(self, scheme: str) -> Cell:
        """The cell of `scheme`."""
        return next(cell for cell in self.cells if cell.scheme == scheme)

    def front(self) -> list[Cell]:
        """The compressed files for which no smaller or equally large one scores as well, smallest first."""
        best: list[Cell] = []
        smaller = [cell for cell in self.cells[1:] if cell.bytes < self.cells[0].bytes]
        for cell in sorted(smaller, key=lambda cell: (cell.bytes, -self.better * cell.value)):
            if not best or self.better * (cell.value - best[-1].value) > 0:
                best.append(cell)
        return best


def recognise(state_dict: Mapping[str, Tensor]) -> tuple[Sample, nn.Module]:
    """The sample model that these tensors belong to, with the tensors in it."""
    tensors = dict(state_dict)
    if "tok.weight" in tensors:
        tensors.setdefault("head.weight", tensors["tok.weight"])
    sample = next(sample for sample in MODELS if shapes(sample.build().state_dict()) == shapes(tensors))
    model = sample.build()
    model.load_state_dict(tensors)  # copies into float32
    return sample, model


def scores(sample: Sample, model: nn.Module) -> NDArray[np.float64]:
    """Score of each independent example, whose mean is what `evaluate_state_dict` gives: 0 to 100, or nats."""
    x, y = examples(sample)
    logits = predict(model, x)
    if sample.metric.startswith("accuracy"):
        right = 100 * (logits.argmax(dim=-1) == y).double()
        return right.view(COPIES.get(sample.model, 1), -1).mean(dim=0).numpy()
    nats = F.cross_entropy(logits.flatten(0, -2).double(), y.flatten(), reduction="none")
    return nats.view(y.shape).mean(dim=1).numpy()


def examples(sample: Sample) -> tuple[Tensor, Tensor]:
    """The test set: x as the model takes it, y int64."""
    with np.load(SAMPLES / sample.test) as test:
        return torch.from_numpy(widen(test["x"])), torch.from_numpy(widen(test["y"]))


def compress(source: Path, output: Path, recipe: Recipe) -> Report:
    """What `modelzip quantize SOURCE -o OUTPUT -f` does."""
    return compress_file(source, output, recipe, Settings(force=True), command="quantize")


def recipe_everywhere(source: Path, scheme: str) -> Recipe:
    """`scheme` for every matrix, by `--set NAME=SCHEME`: small ones, embeddings and classifiers too."""
    return Recipe(scheme, rules=tuple(Rule(name, scheme) for name in matrices(source)))


def matrices(source: Path) -> list[str]:
    """Names of the matrices."""
    return [name for name, each in load_file(source).items() if each.ndim >= 2 and each.is_floating_point()]


def measure(
    source: Path, schemes: Sequence[str], everywhere: Sequence[str], matched: Sequence[str], folder: Path
) -> Measured:
    """All cells of one checkpoint. `matched`: the schemes that are met by `ecq` at equal size."""
    sample, model = recognise(load_file(source))
    before = scores(sample, model)
    cells = [Cell(ORIGINAL, source.stat().st_size, None, None, float(before.mean()), 0.0, 0.0)]
    recipes = [(scheme, Recipe(scheme)) for scheme in schemes]
    recipes += [(f"{scheme} everywhere", recipe_everywhere(source, scheme)) for scheme in everywhere]
    found: dict[str, NDArray[np.float64]] = {}
    for name, recipe in recipes:
        cell, found[name] = tried(source, name, recipe, before, folder)
        cells.append(cell)
    matches = []
    for cell in cells:
        if cell.scheme in matched or (matched and cell.scheme in UNSPARED):
            matches.append(Match(cell, met(source, cell.bytes, found[cell.scheme], folder)))
    return Measured(source, sample, tuple(cells), tuple(matches))


def tried(
    source: Path, name: str, recipe: Recipe, before: NDArray[np.float64], folder: Path
) -> tuple[Cell, NDArray[np.float64]]:
    """One cell, and the scores in it; change and error are against `before`."""
    small = folder / "small.safetensors"
    report = compress(source, small, recipe)
    after = scores(*recognise(load_file(small)))
    error = (after - before).std(ddof=1) / np.sqrt(len(after))
    bits, sqnr, value = report.totals["bits_per_weight"], report.totals["sqnr_db"], float(after.mean())
    return Cell(name, small.stat().st_size, bits, sqnr, value, value - float(before.mean()), float(error)), after


def met(source: Path, most: int, other: NDArray[np.float64], folder: Path) -> Cell | None:
    """What `ecq` gives in `most` bytes, against the scores of another file; the finest step where that takes less."""
    for recipe in (Recipe("ecq", goal=Goal("target_size", most)), Recipe(FINEST)):
        try:
            cell = tried(source, "ecq", recipe, other, folder)[0]
        except Unreachable:
            continue
        return cell if cell.bytes <= most else None
    return None


# --- pruning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrunedCell:
    """One checkpoint, pruned and stored without further loss. `energy`: share of the squared weights that is left."""

    name: str
    bytes: int
    energy: float
    value: float
    change: float
    error: float


@dataclass(frozen=True)
class PrunedModel:
    """One checkpoint and what pruning makes of it. `behind`: how much worse `random` is than `magnitude`, global, at
    70 %, in paired standard errors."""

    measured: Measured
    cells: tuple[PrunedCell, ...]
    behind: float


def prune(source: Path, folder: Path) -> PrunedModel:
    """Prune one checkpoint in every way, as `modelzip prune` does it."""
    sample, model = recognise(load_file(source))
    before = scores(sample, model)
    small = folder / "small.safetensors"
    cells, found = [], {}
    for name, pruning in PRUNINGS:
        share = pruning.sparsity if pruning.sparsity is not None else 0.5
        rules = (Rule(PRUNED_TOO[sample.model], amount=share),) if sample.model in PRUNED_TOO else ()
        recipe = Recipe(scheme="lossless", pruning=pruning, rules=rules)
        report = compress_file(source, small, recipe, Settings(force=True), command="prune")
        after = found[name] = scores(*recognise(load_file(small)))
        error = (after - before).std(ddof=1) / np.sqrt(len(after))
        energy = report.extra["pruning"]["energy_kept"]
        change = float(after.mean() - before.mean())
        cells.append(PrunedCell(name, small.stat().st_size, energy, float(after.mean()), change, float(error)))
    original = Cell(ORIGINAL, source.stat().st_size, None, None, float(before.mean()), 0.0, 0.0)
    measured = Measured(source, sample, (original,))
    difference = measured.better * (found["70 %, `magnitude`, global"] - found["70 %, `random`"])
    behind = difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))
    return PrunedModel(measured, tuple(cells), float(behind))


def pruned_columns(model: PrunedModel) -> list[str]:
    """Heads of the table of one pruned checkpoint."""
    return ["zeros", "bytes", "smaller", "energy", unit(model.measured), "change", "±"]


def pruned_table(model: PrunedModel) -> list[list[str]]:
    """Rows of the table of one pruned checkpoint, the original first."""
    original, digits = model.measured.cells[0], model.measured.digits
    rows = [[ORIGINAL, f"{original.bytes:,}", "1.00", "1.000", figure(original.value, digits), "", ""]]
    for cell in model.cells:
        sizes = [f"{cell.bytes:,}", f"{original.bytes / cell.bytes:.2f}", f"{cell.energy:.3f}"]
        quality = [figure(cell.value, digits), signed(cell.change, digits), figure(cell.error, digits)]
        rows.append([cell.name, *sizes, *quality])
    return rows


def prune_all(folder: Path) -> list[PrunedModel]:
    """Prune the sample models and print what came of them."""
    models = []
    for name in SOURCES:
        if name not in WITHOUT_MATCHES:
            models.append(prune(SAMPLES / name, folder))
            title = f"{name}, pruned; random is {models[-1].behind:.1f} standard errors behind magnitude at 70 %"
            common.print_table(title, pruned_columns(models[-1]), pruned_table(models[-1]))
    return models


def with_pruning(page: str, models: Sequence[PrunedModel]) -> str:
    """The page with the tables about pruning."""
    for model in models:
        page = fill(page, f"{model.measured.source.name} pruned", markdown(pruned_columns(model), pruned_table(model)))
    return page


# --- what breaks a model with batch norm ----------------------------------------------------------------------------


def repair(source: Path, schemes: Sequence[str], folder: Path) -> list[list[str]]:
    """Rows on the image model: share of the squared weights kept, accuracy as it is, and with two things put right."""
    original = load_file(source)
    rows = []
    for scheme in schemes:
        small = folder / "small.safetensors"
        report = compress(source, small, Recipe(scheme))
        restored = load_file(small)
        names = [row.name for row in report.tensors if row.status == "compressed"]
        energy = sum(squares(restored[name]) for name in names) / sum(squares(original[name]) for name in names)
        sample, model = recognise(restored)
        _, scaled = recognise({**restored, **{name: unbiased(restored[name], original[name]) for name in names}})
        _, estimated = recognise(restored)
        estimate_batch_norm(estimated, examples(sample)[0])
        values = [float(scores(sample, each).mean()) for each in (model, scaled, estimated)]
        decibels = report.totals["sqnr_db"]
        rows.append([f"`{scheme}`", f"{decibels:.1f}", f"{energy:.2f}", *(f"{value:.2f}" for value in values)])
    return rows


def squares(tensor: Tensor) -> float:
    """Sum of the squares."""
    return float(tensor.double().square().sum())


def unbiased(restored: Tensor, original: Tensor) -> Tensor:
    """`restored` with every row scaled so that its error is orthogonal to the original weights, not to the restored."""
    w, v = original.double().flatten(1), restored.double().flatten(1)
    scale = w.square().sum(dim=1, keepdim=True) / (w * v).sum(dim=1, keepdim=True)
    return (v * scale).view(restored.shape).float()


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, x: Tensor) -> None:
    """Set the running statistics of batch norm to those of `x`. No labels are used."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    model(x)


# --- tables and page ------------------------------------------------------------------------------------------------


def unit(measured: Measured) -> str:
    """The head of the column of the metric."""
    return "accuracy %" if measured.better == 1 else "nats"


def figure(value: float | None, digits: int) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float, digits: int) -> str:
    """A number with its sign; what rounds to zero has none."""
    written = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(written) == 0 else written


def columns(measured: Measured) -> list[str]:
    """Heads of the table of one checkpoint."""
    return ["scheme", "bytes", "smaller", "bits a weight", "SQNR dB", unit(measured), "change", "±"]


def table(measured: Measured) -> list[list[str]]:
    """Rows of the table of one checkpoint; those on the front are bold."""
    front = {cell.scheme for cell in measured.front()}
    rows = []
    for cell in measured.cells:
        smaller = measured.cells[0].bytes / cell.bytes
        sizes = [f"{cell.bytes:,}", f"{smaller:.2f}", figure(cell.bits, 2), figure(cell.sqnr_db, 1)]
        quality = [figure(cell.value, measured.digits), "", ""]
        if cell.scheme != ORIGINAL:
            quality[1:] = [signed(cell.change, measured.digits), figure(cell.error, measured.digits)]
        scheme = written_name(cell.scheme)
        rows.append([f"**{scheme}**" if cell.scheme in front else scheme, *sizes, *quality])
    return rows


def written_name(scheme: str) -> str:
    """The scheme as code; words beside it are not."""
    name, _, rest = scheme.partition(" ")
    return name if name == ORIGINAL else f"`{name}`{f' {rest}' if rest else ''}"


def overview(models: Sequence[Measured]) -> str:
    """One table: schemes down, checkpoints across, the metric in the cells."""
    heads = ["scheme", *(f"`{measured.source.name}`, {unit(measured)}" for measured in models)]
    rows = []
    for scheme in dict.fromkeys(cell.scheme for measured in models for cell in measured.cells):
        values = [
            next((figure(cell.value, measured.digits) for cell in measured.cells if cell.scheme == scheme), "-")
            for measured in models
        ]
        rows.append([written_name(scheme), *values])
    return markdown(heads, rows)


def matched_table(measured: Measured) -> list[list[str]]:
    """Rows of the comparison at equal size."""
    rows = []
    for match in measured.matches:
        row = [written_name(match.cell.scheme), f"{match.cell.bytes:,}", figure(match.cell.sqnr_db, 1)]
        row.append(figure(match.cell.value, measured.digits))
        cell = match.ecq
        if cell is None:
            row += ["-", "-", "-"]
        else:
            difference = f"{signed(cell.change, measured.digits)} ± {figure(cell.error, measured.digits)}"
            row += [figure(cell.sqnr_db, 1), figure(cell.value, measured.digits), difference]
        rows.append(row)
    return rows


def matched_columns(measured: Measured) -> list[str]:
    """Heads of the comparison at equal size."""
    return ["scheme", "bytes", "SQNR dB", unit(measured), "ecq, SQNR dB", unit(measured), "difference"]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; figures stand to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(page: str, name: str, content: str) -> str:
    """Put `content` between the markers of `name`."""
    return common.fill(page, name, "benchmarks/quality.py", content)


def picture(measured: Measured) -> str:
    """The SVG of one checkpoint."""
    original = measured.cells[0]
    accuracy = measured.better == 1
    front = measured.front()
    return quality_picture.draw(
        title=f"{measured.source.name}: size against {'accuracy' if accuracy else 'nats per character'}",
        points=[
            quality_picture.Point(cell.scheme, cell.bytes, -measured.better * cell.change, cell in front)
            for cell in measured.cells
        ],
        step=0.5 if accuracy else 0.01,
        axis=(
            f"points of accuracy lost; the original has {original.value:.2f} %"
            if accuracy
            else f"nats a character added; the original has {original.value:.4f}"
        ),
    )


def write_page(models: Sequence[Measured], repaired: Sequence[Sequence[str]], pruned: Sequence[PrunedModel]) -> None:
    """Write the tables into the page, and the pictures."""
    measured_with, _, _ = common.versions("modelzip", "numpy", "torch").partition(";")
    page = fill(PAGE.read_text(), "versions", f"Measured with {measured_with}, one thread.")
    page = fill(page, "overview", overview(models))
    page = fill(page, "repair", markdown(REPAIR_COLUMNS, repaired))
    page = with_pruning(page, pruned)
    PICTURES.mkdir(exist_ok=True)
    for measured in models:
        page = fill(page, measured.source.name, markdown(columns(measured), table(measured)))
        if measured.matches:
            matched = markdown(matched_columns(measured), matched_table(measured))
            page = fill(page, f"{measured.source.name} at equal size", matched)
        (PICTURES / f"{measured.source.stem}.svg").write_text(picture(measured))
    PAGE.write_text(page)


REPAIR_COLUMNS = ("scheme", "SQNR dB", "energy", "accuracy %", "rows unbiased", "statistics measured again")


def missed(models: Sequence[Measured], pruned: Sequence[PrunedModel]) -> list[str]:
    """What is wrong, if anything: a sentence each."""
    wrong = [
        f"{model.measured.source.name}: at 70 %, random is only {model.behind:.1f} standard errors behind magnitude"
        for model in pruned
        if model.behind < CLEARLY
    ]
    for measured in models:
        schemes = {cell.scheme for cell in measured.cells}
        if "int8" in schemes:
            lost = -measured.better * measured.cell("int8").change
            if lost > INT8_MAY_COST[measured.sample.metric]:
                wrong.append(f"{measured.source.name}: int8 costs {lost:.4f}")
        if measured.sample.model == "digits_cnn" and "int2 everywhere" in schemes:
            lost = -measured.cell("int2 everywhere").change
            if lost < INT2_MUST_COST:
                wrong.append(f"{measured.source.name}: int2 everywhere costs only {lost:.2f} points")
    return wrong


def main() -> None:
    """Measure, print every table, and write the page if nothing was left out."""
    parser = common.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=SOURCES, choices=SOURCES, metavar="FILE")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, metavar="SCHEME")
    parser.add_argument("--pruning", action="store_true", help="only the section about pruning")
    parser.add_argument("--print-only", action="store_true", help="leave the page as it is; so do the options above")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order
    whole = (tuple(options.models), tuple(options.schemes)) == (SOURCES, SCHEMES) and not options.pruning
    print(common.versions("modelzip", "numpy", "torch"))
    with common.scratch(options.tmp) as folder:
        models: list[Measured] = []
        for name in () if options.pruning else options.models:
            everywhere, matched = (EVERYWHERE, () if name in WITHOUT_MATCHES else MATCHED) if whole else ((), ())
            models.append(measure(SAMPLES / name, options.schemes, everywhere, matched, folder))
            common.print_table(f"{name}; `±` is one standard error", columns(models[-1]), table(models[-1]))
            if models[-1].matches:
                heads = matched_columns(models[-1])
                common.print_table(f"{name}, and ecq at equal size", heads, matched_table(models[-1]))
        repaired = repair(SAMPLES / SOURCES[0], REPAIRED, folder) if whole else []
        pruned = prune_all(folder) if whole or options.pruning else []
    if whole:
        common.print_table("The image model, and what breaks it", REPAIR_COLUMNS, repaired)
    if whole and not options.print_only:
        write_page(models, repaired, pruned)
    if options.pruning and not options.print_only:
        PAGE.write_text(with_pruning(PAGE.read_text(), pruned))
    if wrong := missed(models, pruned):
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
