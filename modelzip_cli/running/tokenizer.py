"""Text -> tokens: what `--tokenizer` names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.errors import BadData, inert
from modelzip_cli.running.content import read_file
from modelzip_cli.running.extras import require

Encode = Callable[[str], list[int]]

PADS = ("[PAD]", "<pad>", "<|pad|>")
TOKENIZERS = "bytes, a Hugging Face directory, a tokenizer.json, or a JSON list of characters"


@dataclass(frozen=True)
class Tokenizer:
    """Text -> tokens, all of them when it is called. `pad`: the token that fills shorter texts up.

    `cut` gives at most so many; a tokenizer that marks the end of a text marks it there.
    """

    encode: Encode
    cut: Callable[[str, int], list[int]]
    pad: int = 0

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)


def as_tokenizer(encode: Encode) -> Tokenizer:
    """Any function from text to tokens as a tokenizer that cuts at the end and pads with 0."""
    return encode if isinstance(encode, Tokenizer) else Tokenizer(encode, lambda text, most: encode(text)[:most])


def open_tokenizer(spec: str) -> Tokenizer:
    """What --tokenizer names: `bytes` (UTF-8), a Hugging Face directory, a `tokenizer.json`, a JSON list of characters.

    Of a list, a character's place is its token, and the last entry stands for all others. No code of a directory is
    run. Raises FileNotThere, BadData, and MissingExtra without modelzip[hf].
    """
    if spec == "bytes":
        return as_tokenizer(lambda text: list(text.encode("utf-8", "replace")))
    path = Path(spec)
    if path.is_dir():
        return _of_directory(path)
    content, origin = read_file(path)
    try:
        value = parse(content)
    except NotStrict as error:
        raise BadData(f"{origin.label}: no tokenizer: {inert(str(error), longest=200)}; give {TOKENIZERS}") from None
    return _of_list(value, origin.label) if isinstance(value, list) else _of_json(content, origin.label)


def _of_list(characters: list[Any], label: str) -> Tokenizer:
    if len(characters) < 2 or not all(isinstance(c, str) and len(c) == 1 for c in characters):
        raise BadData(f"{label}: a vocabulary is a list of two or more single characters")
    token_of = {character: token for token, character in enumerate(characters)}
    if len(token_of) != len(characters):
        raise BadData(f"{label}: a character stands in the vocabulary twice")
    unknown = len(characters) - 1
    return as_tokenizer(lambda text: [token_of.get(character, unknown) for character in text])


def _of_json(content: bytes, label: str) -> Tokenizer:
    require("tokenizers", "hf", label)
    from tokenizers import Tokenizer as Fast

    try:
        fast = Fast.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises no narrower one
        raise BadData(f"{label}: no tokenizer: {inert(str(error), longest=200)}; give {TOKENIZERS}") from error
    named = [token for token in map(fast.token_to_id, PADS) if token is not None]
    pad = fast.padding["pad_id"] if fast.padding else next(iter(named), 0)
    fast.no_padding()

    def encode(text: str) -> list[int]:
        fast.no_truncation()
        return list(fast.encode(text).ids)

    def cut(text: str, most: int) -> list[int]:
        fast.enable_truncation(most)
        return list(fast.encode(text).ids)

    return Tokenizer(encode, cut, pad)


def _of_directory(path: Path) -> Tokenizer:
    label = inert(str(path))
    require("transformers", "hf", label)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a broken configuration makes the library raise
        reason = inert(str(error).strip().split("\n")[0], longest=200)
        raise BadData(f"{label}: no tokenizer that transformers opens without code of its own: {reason}") from error
    if len(tokenizer) <= len({*tokenizer.all_special_ids}):  # transformers makes one of nothing, without a word
        raise BadData(f"{label}: its tokenizer has no vocabulary: tokenizer.json, vocab.txt or the like is missing")

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, verbose=False)["input_ids"])

    def cut(text: str, most: int) -> list[int]:
        return list(tokenizer(text, verbose=False, truncation=True, max_length=most)["input_ids"])

    return Tokenizer(encode, cut, tokenizer.pad_token_id or 0)
