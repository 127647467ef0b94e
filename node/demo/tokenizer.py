"""A CLIP vocabulary learned on the captions.

Byte pairs as in Sennrich et al. (arXiv:1508.07909), learned here rather than by the `tokenizers` trainer for one
reason: Japanese has no spaces, so that trainer would make one token of a whole phrase ("青い背景の左に"), and nothing
could be learned about its parts. Here pairs are only counted inside words.
"""

import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from node.demo import captions
from node.demo.architecture import TEXT_TOKENS
from node.demo.world import training_scene

CAPTIONS = 4000
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

Symbols = tuple[str, ...]
Pair = tuple[str, str]


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte, as in GPT-2 and CLIP."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(rest)}


def learned(seed: int = 0) -> Any:
    """A CLIPTokenizer that knows the captions' words and spells anything else in bytes."""
    from transformers import CLIPTokenizer

    rng = random.Random(seed)
    texts = [captions.caption(captions.some_of(training_scene(rng), rng), rng) for _ in range(CAPTIONS)]
    alphabet = sorted(byte_alphabet().values())
    merges = learn_merges(word_counts(texts))
    words = [*alphabet, *(character + WORD_END for character in alphabet), *(first + second for first, second in merges)]
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys([*words, START, END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_TOKENS)


def load(folder: Path) -> Any:
    """The tokenizer that `save_pretrained` wrote."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def word_counts(texts: list[str]) -> Counter[Symbols]:
    """How often each word occurs, spelled in byte characters; a word before a space or the end carries the end mark."""
    alphabet = byte_alphabet()
    counts: Counter[Symbols] = Counter()
    for text in texts:
        for run in re.findall(r"[^\W\d_]+|\d|[^\s\w]+", text.lower()):
            parts = [run] if run.isascii() else captions.pieces(run)
            for at, part in enumerate(parts):
                symbols = [alphabet[byte] for byte in part.encode()]
                if at == len(parts) - 1:
                    symbols[-1] += WORD_END
                counts[tuple(symbols)] += 1
    return counts


def learn_merges(counts: Counter[Symbols]) -> list[Pair]:
    """Join the most frequent pair of neighbours until every word is one symbol."""
    words = dict(counts)
    merges: list[Pair] = []
    while pairs := _pair_counts(words):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        joined: Counter[Symbols] = Counter()
        for symbols, count in words.items():
            joined[_join(symbols, best)] += count
        words = dict(joined)
    return merges


def _pair_counts(words: dict[Symbols, int]) -> Counter[Pair]:
    pairs: Counter[Pair] = Counter()
    for symbols, count in words.items():
        for pair in pairwise(symbols):
            pairs[pair] += count
    return pairs


def _join(symbols: Symbols, pair: Pair) -> Symbols:
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)
