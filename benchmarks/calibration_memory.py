"""Peak memory of calibration, above that of the model that runs on the same batches.

    python benchmarks/calibration_memory.py [--blocks 20] [--width 1024] [--tokens 8]

A transformer of 1 GB of random float32 weights, and every kind of statistic of the weights of one of its blocks (memory
is that of a group of weights, which the other blocks would need again after it). Each figure is the kernel's own for a
process of its own, which builds the model in memory: reading a checkpoint would have a peak that hides this one. What
runs without gradients is held against forward passes alone, `fisher` against gradients of one weight. The goal is
250 MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import common
from common import MB, verdict

KINDS = ("second_moment", "hessian", "sensitivity", "fisher")
FORWARD, GRADIENT = "forward", "gradient"  # what a kind is held against
GOAL = 250  # MB
EXAMPLES, BATCHES = 64, 2
VOCABULARY, HEADS = 256, 16


def measured(what: str, blocks: int, width: int, tokens: int, folder: Path) -> None:
    """Do one thing with a new model; its memory is that of this process."""
    import torch
    from torch import nn

    from modelzip_cli.running.calibrate import SMALL_BATCH, calibrate
    from modelzip_cli.running.inputs import Batch, Wanted
    from modelzip_cli.running.model import Model
    from modelzip_cli.tensors import F32, TensorSpec

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(mixed.transpose(1, 2).flatten(2))
            return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))

    torch.manual_seed(0)
    torch.set_num_threads(1)
    stack = [Block() for _ in range(blocks)]
    module = nn.Sequential(nn.Embedding(VOCABULARY, width), *stack, nn.Linear(width, VOCABULARY)).eval()
    model = Model(module, "synthetic", "benchmark", Wanted(kind="tokens", positions=True), 0)
    batches = [Batch((torch.randint(VOCABULARY, (EXAMPLES, tokens)),), None) for _ in range(BATCHES)]
    named = {name: one for name, one in module.named_parameters() if name.startswith("1.") and one.ndim == 2}
    if what == FORWARD:
        with torch.no_grad():
            for batch in batches:
                model.scores(batch)
    elif what == GRADIENT:
        for parameter in module.parameters():
            parameter.requires_grad_(parameter is named["1.qkv.weight"])
        for batch in batches:
            for piece in batch.inputs[0].split(SMALL_BATCH):
                torch.autograd.grad(model.run((piece,)).logsumexp(-1).mean(), [named["1.qkv.weight"]])
    else:
        specs = [TensorSpec(name, F32, tuple(one.shape)) for name, one in named.items()]
        calibrate(model, specs, batches, [what], folder / "statistics.safetensors", replace=True, data="random tokens")


def main() -> int:
    """Measure each kind in a process of its own, and print one table. 1 where the goal is missed."""
    parser = common.parser(__doc__)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=8, help="of each of the 128 sequences")
    parser.add_argument("--measured", metavar="WHAT", help="do this one thing, in this process")
    options = parser.parse_args()
    sizes = (options.blocks, options.width, options.tokens)
    if options.measured:
        measured(options.measured, *sizes, options.tmp)
        return 0
    print(common.versions("modelzip", "torch"))
    arguments = [f"--{name}={size}" for name, size in zip(("blocks", "width", "tokens"), sizes, strict=True)]
    with common.scratch(options.tmp) as folder:
        script = (sys.executable, __file__, *arguments, "--tmp", folder, "--measured")
        peaks = {what: common.run(*script, what).peak_rss / MB for what in (FORWARD, GRADIENT, *KINDS)}
    above = {kind: peaks[kind] - peaks[GRADIENT if kind == "fisher" else FORWARD] for kind in KINDS}
    rows = [(what, f"{peaks[what]:.0f}", "", "", "") for what in (FORWARD, GRADIENT)]
    rows += [
        (kind, f"{peaks[kind]:.0f}", f"{more:.0f}", str(GOAL), verdict(more <= GOAL)) for kind, more in above.items()
    ]
    columns = ("what runs", "peak MB", "above the model that runs", "goal", "reached")
    common.print_table("Peak resident memory, MB = 10^6 bytes", columns, rows)
    return 0 if max(above.values()) <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
