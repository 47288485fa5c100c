"""The four sample models: what they are, the data they learn from, and how they are trained, on a CPU in minutes.

    python sample_models/train.py --model digits_cnn --seed 0

All data comes from scikit-learn and from the standard library of the Python that runs this. Splits and distortions
depend on DATA_SEED alone, so a model of any `--seed` is held against the same test set. One thread: the same seed gives
the same weights on the same machine, however many cores it has.

Besides torch, training needs scikit-learn (digits only) and safetensors; importing this module needs torch and numpy.
"""

import argparse
import ast
import math
import re
import sysconfig
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).parent
DATA_SEED = 0
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOCABULARY = "\n" + "".join(map(chr, range(0x20, 0x7F))) + "\ufffd"  # fixed, so that all Python versions agree on it
UNKNOWN = len(VOCABULARY) - 1
CONTEXT = 64  # characters that the language model sees
BUCKETS = 8192  # hash buckets for words; bucket 0 is padding
MAX_WORDS = 64

Examples = tuple[Tensor, Tensor]  # x, y
Sampler = Callable[[torch.Generator], Examples]


# --- models ---------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: He et al., Deep Residual Learning, 2015, arXiv:1512.03385."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride]."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class DigitsCNN(nn.Module):
    """A residual network for distorted digits: stem, three blocks, mean pool, linear."""

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 96)) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(first)
        self.blocks = nn.Sequential(
            ResidualBlock(first, first, stride=1),
            ResidualBlock(first, second, stride=2),
            ResidualBlock(second, third, stride=2),
        )
        self.head = nn.Linear(third, len(DIGITS))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, 12, 12] in 0..1 -> logits [batch, 10]."""
        hidden: Tensor = self.blocks(F.relu(self.bn(self.stem(x))))
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


class DigitsMLP(nn.Module):
    """A plain 64-100-50-10 perceptron for digits without distortion."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, len(DIGITS))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 64] in 0..1 -> logits [batch, 10]."""
        logits: Tensor = self.layers(x)
        return logits


class TransformerBlock(nn.Module):
    """Causal attention and a GELU layer, normalised before each: Radford et al., GPT-2, 2019."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> the same shape."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [batch, heads, time, width / heads]
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, length, width))
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + hidden


class DocsLM(nn.Module):
    """A character transformer with learned positions; `head.weight` is `tok.weight`, the same memory."""

    def __init__(self, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.tok = nn.Embedding(len(VOCABULARY), width)
        self.pos = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(VOCABULARY), bias=False)
        self.head.weight = self.tok.weight
        for module in self.modules():  # as GPT-2 does; with torch's N(0, 1) for the embedding the tied logits explode
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [batch, time], time <= 64 -> logits [batch, time, 97] for the character after each."""
        hidden: Tensor = self.tok(x) + self.pos(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class DocstringClassifier(nn.Module):
    """A bag of hashed words: embedding, sum over the square root of the number of words, one hidden layer."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BUCKETS, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight[1:], std=0.02)  # torch's N(0, 1) drowns the rare words: 7 points worse
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Word buckets int64 [batch, words], 0 is padding -> logits [batch, classes]."""
        present = (x != 0).unsqueeze(-1).float()  # not left to row 0: quantization may move it off zero
        bag = (self.embedding(x) * present).sum(dim=1) / present.sum(dim=1).sqrt()
        logits: Tensor = self.output(self.dropout(F.relu(self.hidden(bag))))
        return logits


# --- data -----------------------------------------------------------------------------------------------------------


def load_digits() -> tuple[Examples, Examples]:
    """The 8x8 digits of scikit-learn: 1,297 train and 500 test pairs, x float32 [n, 1, 8, 8] in 0..1, y int64 [n]."""
    from sklearn import datasets  # type: ignore[import-untyped]

    digits = datasets.load_digits()
    x = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    y = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(DATA_SEED))
    train, test = order[500:], order[:500]
    return (x[train], y[train]), (x[test], y[test])


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """[n, 1, 8, 8] -> [n, 1, 12, 12]: moved, turned, scaled, sheared, a neighbour at the border, contrast and noise."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    def sample(source: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, [n, 1, 12, 12], align_corners=False)
        return F.grid_sample(source, grid, mode="bilinear", align_corners=False)

    angle, scale, shear = uniform(-18, 18) * math.pi / 180, uniform(0.8, 1.05), uniform(-0.25, 0.25)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = [cos, shear * cos - sin, 2 * uniform(-0.15, 0.15), sin, shear * sin + cos, 2 * uniform(-0.15, 0.15)]
    digit = sample(images, torch.stack(rows, dim=1).view(n, 2, 3))

    others = images[torch.randperm(n, generator=generator)]
    away = uniform(1.3, 1.7) * uniform(-1, 1).sign()  # the grid is 2 wide, so a quarter of the other shows
    sideways = uniform(0, 1) < 0.5
    theta = torch.eye(2, 3).repeat(n, 1, 1)
    theta[:, 0, 2] = torch.where(sideways, away, 0)
    theta[:, 1, 2] = torch.where(sideways, 0, away)
    image = torch.maximum(digit, 0.7 * sample(others, theta))

    noise = torch.randn(image.shape, generator=generator)
    return eight_bits((image * uniform(0.5, 1).view(n, 1, 1, 1) + 0.12 * noise).clamp(0, 1))


def eight_bits(x: Tensor) -> Tensor:
    """Round to 1/256, as a picture file would: float16 holds the result exactly, and it compresses well."""
    return (256 * x).round() / 256


def distorted_digits() -> tuple[Examples, Examples]:
    """6 distorted copies of the train digits and 4 of the test digits, x [n, 1, 12, 12]; split before distorting."""
    (x_train, y_train), (x_test, y_test) = load_digits()
    generator = torch.Generator().manual_seed(DATA_SEED)
    train = distort(x_train.repeat(6, 1, 1, 1), generator), y_train.repeat(6)
    test = distort(x_test.repeat(4, 1, 1, 1), generator), y_test.repeat(4)
    return train, test


def flat_digits() -> tuple[Examples, Examples]:
    """The train digits as they are, 4 noisy copies of the test digits (standard deviation 0.15); x [n, 64]."""
    (x_train, y_train), (x_test, y_test) = load_digits()
    noise = torch.randn(4 * len(x_test), 64, generator=torch.Generator().manual_seed(DATA_SEED))
    x_noisy = eight_bits(x_test.flatten(1).repeat(4, 1) + 0.15 * noise)
    return (x_train.flatten(1), y_train), (x_noisy, y_test.repeat(4))


def documentation() -> tuple[Tensor, Tensor]:
    """The help topics of Python as tokens: train windows int64 [n, 65] at any offset, test windows [m, 65].

    Topics quote each other, so each paragraph is kept once: else 45 % of the test windows are in the train text too,
    word for word, and 2 % after. The text is cut into blocks of 2,000 characters and every tenth is test; no window
    crosses a cut. A test window ends with the character that the next one starts with, so none is predicted twice.
    """
    from pydoc_data.topics import topics

    index = {character: token for token, character in enumerate(VOCABULARY)}
    paragraphs: dict[str, str] = {}  # without its spaces -> as first met: quotes differ in indentation
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            paragraphs.setdefault("".join(paragraph.split()), paragraph.strip("\n"))
    text = "\n\n".join(paragraphs.values())
    tokens = torch.tensor([index.get(character, UNKNOWN) for character in text])
    blocks = [tokens[start : start + 2000] for start in range(0, len(tokens), 2000)]
    runs = [torch.cat(blocks[start + 1 : start + 10]) for start in range(0, len(blocks) - 1, 10)]
    train = torch.cat([run.unfold(0, CONTEXT + 1, 1) for run in runs])
    test = torch.cat([block.unfold(0, CONTEXT + 1, CONTEXT) for block in blocks[::10]])
    return train, test


def docstrings() -> tuple[list[str], Examples, Examples]:
    """Docstrings of the ten standard-library packages with most of them, to tell the packages apart.

    Returns the packages and train and test pairs, 4 to 1: x int64 [n, 64], the crc32 of each word as a bucket in
    1..8191, padded with 0; y int64 [n]. The name of the package itself is left out, and so are tests and duplicates.
    """
    root = Path(sysconfig.get_path("stdlib"))
    package_of: dict[tuple[int, ...], str] = {}  # words -> package: a docstring counts once, where it is met first
    for path in sorted(root.glob("*/**/*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not {"site-packages", "dist-packages", "test", "tests", "idle_test"}.isdisjoint(folders):
            continue
        for text in docstrings_of(path):
            words = [word for word in re.findall(r"[a-z]+", text.lower()) if word != folders[0]][:MAX_WORDS]
            if words:
                package_of.setdefault(
                    tuple(zlib.crc32(word.encode()) % (BUCKETS - 1) + 1 for word in words), folders[0]
                )
    packages = sorted(name for name, _ in Counter(package_of.values()).most_common(10))
    chosen = [(words, packages.index(name)) for words, name in package_of.items() if name in packages]
    x = torch.tensor([words + (0,) * (MAX_WORDS - len(words)) for words, _ in chosen])
    y = torch.tensor([label for _, label in chosen])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(DATA_SEED))
    test, train = order[: len(y) // 5], order[len(y) // 5 :]
    return packages, (x[train], y[train]), (x[test], y[test])


def docstrings_of(path: Path) -> list[str]:
    """All docstrings of a source file, of the module, its classes and functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources
        tree = ast.parse(path.read_bytes())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in ast.walk(tree) if isinstance(node, documented) and (text := ast.get_docstring(node))]


# --- training and evaluation ----------------------------------------------------------------------------------------


def fit(
    model: nn.Module, sample: Sampler, *, steps: int, learning_rate: float, seed: int
) -> tuple[torch.optim.AdamW, list[float]]:
    """Minimise the cross-entropy by AdamW: 5 % warm-up, cosine, gradients clipped at 1. Returns each step's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    warm_up = steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, (1 + math.cos(math.pi * step / steps)) / 2),
    )
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    model.train()
    for _ in range(steps):
        x, y = sample(generator)
        loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return optimizer, losses


def batches(x: Tensor, y: Tensor, size: int) -> Sampler:
    """Draw `size` of the pairs at random, with replacement."""

    def sample(generator: torch.Generator) -> Examples:
        chosen = torch.randint(len(y), (size,), generator=generator)
        return x[chosen], y[chosen]

    return sample


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percentage of right answers; x as the model takes it, y int64 [n]."""
    return 100 * (predict(model, x).argmax(dim=-1) == y).double().mean().item()


def nats_per_character(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean cross-entropy of the next character; x and y int64 [windows, 64], y one character ahead of x."""
    return F.cross_entropy(predict(model, x).flatten(0, -2).double(), y.flatten()).item()


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of the model in eval mode, [n, ..., classes], 256 examples at a time."""
    model.eval()
    return torch.cat([model(x[start : start + 256]) for start in range(0, len(x), 256)])


# --- the four recipes -----------------------------------------------------------------------------------------------


def train_digits_cnn(seed: int) -> str:
    """Writes a plain state dict, the same model exported, and the distorted digits, train and test."""
    train, test = distorted_digits()
    model = DigitsCNN()
    fit(model, batches(*train, size=64), steps=900, learning_rate=3e-3, seed=seed)
    torch.save(model.state_dict(), HERE / "digits_cnn.pth")
    export_digits_cnn(model)
    save_data("digits_train.npz", *train)
    save_data("digits_test.npz", *test)
    return f"accuracy {accuracy(model, *test):.2f} %"


def export_digits_cnn(model: nn.Module) -> None:
    """Writes the network with its weights. `torch.export.save` would do, but names folders of this machine in it."""
    from modelzip_cli.running.export import save_export
    from modelzip_cli.running.inputs import Wanted

    data = save_export(model, (torch.zeros(2, 1, 12, 12),), wanted=Wanted(shape=(1, 12, 12)), recipe=None)
    (HERE / "digits_cnn.pt2").write_bytes(data)


def train_digits_mlp(seed: int) -> str:
    """Writes a trainer's checkpoint, with all that such files carry besides weights, and the noisy test digits."""
    train, test = flat_digits()
    model = DigitsMLP()
    epochs, steps_per_epoch = 30, len(train[1]) // 64
    optimizer, losses = fit(
        model, batches(*train, size=64), steps=epochs * steps_per_epoch, learning_rate=3e-3, seed=seed
    )
    reached = accuracy(model, *test)
    checkpoint = {
        "epoch": epochs,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "best_accuracy": reached,
        "history": [float(np.mean(epoch)) for epoch in np.split(np.array(losses), epochs)],
        "config": {
            "layers": (64, 100, 50, 10),
            "learning_rate": 3e-3,
            "batch_size": 64,
            "shuffle": True,
            "scheduler": "cosine",
            "early_stopping": None,
            "classes": dict(enumerate(DIGITS)),
        },
    }
    torch.save(checkpoint, HERE / "digits_mlp.pth")
    save_data("digits_mlp_test.npz", *test)
    return f"accuracy {reached:.2f} %"


def train_docs_lm(seed: int) -> str:
    """Writes bfloat16 safetensors without the tied head, a float32 checkpoint with it, and the test windows."""
    from safetensors.torch import save_file

    train, test = documentation()
    model = DocsLM()
    steps = 1500
    fit(model, batches(train[:, :-1], train[:, 1:], size=16), steps=steps, learning_rate=2e-3, seed=seed)
    state_dict = model.state_dict()
    half = {name: tensor.bfloat16() for name, tensor in state_dict.items() if name != "head.weight"}
    save_file(half, HERE / "docs_lm.safetensors", metadata={"format": "pt"})
    hyper_parameters = {"vocabulary": VOCABULARY, "context": CONTEXT, "width": 128, "layers": 4, "heads": 4}
    torch.save(
        {"state_dict": state_dict, "hyper_parameters": hyper_parameters, "global_step": steps},
        HERE / "docs_lm_trainer.pth",
    )
    apart = train[::CONTEXT]  # windows that do not overlap hold all of the text, but for the end of a run
    save_data("docs_train.npz", apart[:, :-1], apart[:, 1:])
    save_data("docs_test.npz", test[:, :-1], test[:, 1:], vocabulary=np.array(list(VOCABULARY)))
    return f"{nats_per_character(model, test[:, :-1], test[:, 1:]):.4f} nats per character"


def train_docstring_classifier(seed: int) -> str:
    """Writes float32 safetensors, and the test docstrings as word buckets."""
    from safetensors.torch import save_file

    packages, train, test = docstrings()
    model = DocstringClassifier()
    fit(model, batches(*train, size=64), steps=400, learning_rate=1e-2, seed=seed)
    save_file(model.state_dict(), HERE / "docstring_classifier.safetensors", metadata={"format": "pt"})
    save_data("docstrings_test.npz", *test, packages=np.array(packages))
    return f"accuracy {accuracy(model, *test):.2f} %"


def save_data(name: str, x: Tensor, y: Tensor, **more: Any) -> None:
    """Compressed x and y in the smallest type that holds them: pictures as float16, tokens and labels unsigned."""
    inputs = (
        x.numpy().astype(np.float16) if x.is_floating_point() else x.numpy().astype(np.min_scalar_type(int(x.max())))
    )
    np.savez_compressed(HERE / name, x=inputs, y=y.numpy().astype(np.uint8), **more)


RECIPES = {
    "digits_cnn": train_digits_cnn,
    "docs_lm": train_docs_lm,
    "docstring_classifier": train_docstring_classifier,
    "digits_mlp": train_digits_mlp,
}


def main() -> None:
    """Train the models that were asked for, and print what each reached on its test set."""
    parser = argparse.ArgumentParser(description="Train the sample models. Files are written beside this script.")
    parser.add_argument("--model", choices=[*RECIPES, "all"], default="all")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of the examples")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in RECIPES if options.model == "all" else [options.model]:
        start = time.perf_counter()
        torch.manual_seed(options.seed)
        result = RECIPES[name](options.seed)
        print(f"{name}: {result}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
