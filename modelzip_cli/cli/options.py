"""Every option, once. Commands are made of these."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Checkpoint files or Hugging Face directories; - is standard input."),
]
ManyPaths = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="PATH...",
        help="Checkpoint files, Hugging Face directories, or with -r any directories; - is standard input.",
        show_default=False,
    ),
]
OnePath = Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint file.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="The output (one input). Its suffix says the container: .safetensors, or .pth .pt .bin .ckpt; none is a "
        "directory, - standard output.",
    ),
]
OutputDir = Annotated[
    Path | None,
    typer.Option("--output-dir", metavar="DIR", help="Where outputs go; the tree of an input directory is mirrored."),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace existing outputs.")]
SkipExisting = Annotated[bool, typer.Option("--skip-existing", help="Leave existing outputs and go on.")]
Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="Take every checkpoint below the given directories.")
]
FileList = Annotated[
    Path | None, typer.Option("--filelist", metavar="FILE", help="More inputs, one path a line; - is standard input.")
]
Include = Annotated[
    list[str] | None, typer.Option("--include", metavar="GLOB", help="With -r: only these files. Repeatable.")
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="GLOB", help="With -r: not these files. Repeatable.")
]
SchemeName = Annotated[
    str | None,
    typer.Option(
        "--scheme",
        "-s",
        metavar="SCHEME",
        help="How weights are stored, such as int4-g64; `modelzip schemes` lists all.  [default: int8]",
    ),
]
Bits = Annotated[int | None, typer.Option("--bits", metavar="N", help="Short for --scheme intN.")]
GroupSize = Annotated[
    int | None, typer.Option("--group-size", metavar="N", help="Weights that share a scale: the -gN of an int scheme.")
]
Bpw = Annotated[
    float | None, typer.Option("--bpw", metavar="BITS", help="At most this many stored bits a treated weight (ecq).")
]
MinSqnr = Annotated[
    float | None, typer.Option("--min-sqnr", metavar="DB", help="As small as this SQNR over all weights allows (ecq).")
]
Ratio = Annotated[
    str | None, typer.Option("--ratio", metavar="8x", help="An output this many times smaller than its source.")
]
TargetSize = Annotated[
    str | None, typer.Option("--target-size", metavar="SIZE", help="An output of at most this size: 25MB, 25MiB.")
]
LosslessFlag = Annotated[
    bool, typer.Option("--lossless", help="Keep every bit; the restored file is the source. Keeps extras.")
]
Requantize = Annotated[
    bool, typer.Option("--requantize", help="Take a file that modelzip compressed: decode it, compress it again.")
]
Sparsity = Annotated[float | None, typer.Option("--sparsity", metavar="S", help="Share of zeros: 0.7 is 70 %.")]
Threshold = Annotated[
    float | None, typer.Option("--threshold", metavar="T", help="Prune every weight whose magnitude is below this.")
]
PatternName = Annotated[
    str | None,
    typer.Option("--pattern", metavar="N:M", help="Keep N of every M weights along the input dimension, such as 2:4."),
]
CriterionName = Annotated[
    str | None,
    typer.Option(
        "--criterion",
        metavar="NAME",
        help="Which weights go first: magnitude or random; with --data or --statistics also taylor, fisher, wanda, "
        "sparsegpt; with --data also auto, the better of magnitude and fisher.  [default: magnitude]",
    ),
]
Scope = Annotated[
    str | None,
    typer.Option(
        "--scope",
        metavar="global|layer",
        help="One threshold for all tensors, or the same share of each.  [default: global; of random and sparsegpt, "
        "layer]",
    ),
]
MinKeep = Annotated[
    float | None,
    typer.Option("--min-keep", metavar="SHARE", help="What a global threshold leaves every tensor.  [default: 0.02]"),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Of --criterion random, and of what is drawn of --data.  [default: 0]"),
]
DepthShare = Annotated[
    str | None,
    typer.Option("--depth", metavar="SHARE", help="Keep this share of the layers; or PREFIX:SHARE, if several repeat."),
]
DropLayers = Annotated[
    str | None,
    typer.Option("--drop-layers", metavar="N,N", help="Drop these layers, the first is 0; or PREFIX:N,N."),
]
Channels = Annotated[
    float | None,
    typer.Option("--channels", metavar="SHARE", help="Keep this share of the channels: a narrower network, as .pt2."),
]
RunData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Run the model on this to see which weights matter, and what the output still does: a folder of pictures, "
        ".npz .npy .csv .tsv .jsonl .txt .parquet .arrow, or file.py:function.",
    ),
]
TestData = Annotated[
    str | None,
    typer.Option("--test-data", metavar="PATH", help="What models are judged on.  [default: a tenth of --data]"),
]
StatisticsPath = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        metavar="FILE",
        help="Which weights matter, from a file: that of --save-statistics or your own (docs/statistics.md). No "
        "model is run for it.",
    ),
]
SaveStatistics = Annotated[
    Path | None,
    typer.Option("--save-statistics", metavar="FILE", help="Keep what --data says of the weights, for --statistics."),
]
Recover = Annotated[
    int | None,
    typer.Option(
        "--recover",
        metavar="N",
        help="With --data: train what is left for N steps to do what the unpruned model does; zeros stay zeros.",
        min=1,
    ),
]
KeptScheme = Annotated[
    str | None,
    typer.Option(
        "--scheme", "-s", metavar="SCHEME", help="How what is left is stored, such as int4.  [default: lossless]"
    ),
]
SetAmount = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="GLOB=AMOUNT",
        help="Another share of zeros for some tensors, or a scheme; keep leaves them alone. The last match wins.",
    ),
]
CoderName = Annotated[
    str | None,
    typer.Option(
        "--coder",
        metavar="auto|bitpack|rans",
        help="How codes become bytes; auto entropy-codes where that saves 15 %, bitpack is fastest.  [default: auto]",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="GLOB", help="Treat only these tensors. Repeatable; re: makes it a regular expression."
    ),
]
Skip = Annotated[list[str] | None, typer.Option("--skip", metavar="GLOB", help="Keep these tensors too. Repeatable.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="GLOB=SCHEME",
        help="Another scheme for some tensors, whatever the defaults; keep leaves them alone. The last match wins.",
    ),
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="A TOML recipe; options override it.")
]
SaveRecipe = Annotated[
    Path | None, typer.Option("--save-recipe", metavar="FILE", help="Write the effective recipe as TOML.")
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout", metavar="native|dense", help="Smallest, or plain tensors that any loader reads.  [default: native]"
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="NAME", help="Which state dict of a nested checkpoint, dots between levels."),
]
KeepExtras = Annotated[
    bool, typer.Option("--keep-extras", help="Keep tensors beside the weights, such as optimizer state.")
]
AllowNonfinite = Annotated[
    bool,
    typer.Option(
        "--allow-nonfinite", help="Keep tensors with NaN or infinity as they are instead of refusing the file."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Show the plan and the sizes; write nothing.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", metavar="N", help="Worker threads.  [default: all cores]")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="auto|rich|plain|json|jsonl|md",
        help="How the report is shown; auto: rich on a terminal, plain in a pipe.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
ReportFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        metavar="FILE.{json,md,html}",
        help="The report as a file as well; replaced if it exists. Repeatable.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the paths of outputs.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="One row for every tensor.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
FailUnder = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-under",
        metavar="METRIC=VALUE",
        help="Exit 4 when sqnr, sqnr-min (dB) or cosine is lower. Repeatable.",
    ),
]
OutputGates = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-under",
        metavar="METRIC=VALUE",
        help="Exit 4 and leave no output when sqnr, sqnr-min (dB) or cosine is lower; with --data also accuracy, "
        "agreement (0 to 1), perplexity-ratio. Repeatable.",
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option("--max-size", metavar="SIZE", help="Exit 4 and leave no output when it would be larger: 25MB, 25MiB."),
]
DataPath = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="PATH",
        help="A folder of pictures, .npz .npy .csv .tsv .jsonl .txt .parquet .arrow, or file.py:function.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="NETWORK",
        help="The network of the weights: file.py:Net, package.module:factory, a .pt2, a Hugging Face directory.",
    ),
]
ArchArgs = Annotated[
    str | None, typer.Option("--arch-args", metavar="JSON", help="Arguments of --arch, such as '{\"width\": 64}'.")
]
LabelKey = Annotated[
    str | None, typer.Option("--label-key", metavar="NAME", help="The column of labels.  [default: label, y or class]")
]
TextKey = Annotated[
    str | None, typer.Option("--text-key", metavar="NAME", help="The column of texts.  [default: text or sentence]")
]
Mean = Annotated[
    str | None, typer.Option("--mean", metavar="M,M,M", help="Of pictures, a channel each; values are 0 to 1.")
]
Std = Annotated[str | None, typer.Option("--std", metavar="S,S,S", help="The same for the standard deviation.")]
ImageSize = Annotated[
    str | None, typer.Option("--image-size", metavar="N|HxW", help="What pictures are resized and cropped to.")
]
TokenizerName = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="bytes|PATH",
        help="How text becomes tokens: bytes, a Hugging Face directory, or a JSON list of characters.",
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave pictures out that cannot be read, and count them.")]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Only N examples, which the seed chooses.", min=1)
]
DataSeed = Annotated[int, typer.Option("--seed", metavar="N", help="Of all that is drawn.", min=0)]
ModelGates = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-under",
        metavar="METRIC=VALUE",
        help="Exit 4 when accuracy, agreement (0 to 1) or perplexity-ratio is lower. Repeatable.",
    ),
]
TableFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--report", metavar="FILE.{json,md}", help="The report as a file as well; replaced if it exists. Repeatable."
    ),
]
