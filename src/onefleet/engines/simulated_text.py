"""The language of the simulated engine: what its tokens are, what it says, how it embeds.

A token is four bytes of UTF-8 (the last of a text may be shorter), its id their little-endian
number. An answer is made of four-byte words that a hash of the prompt chooses, so the same prompt
always gets the same answer, and counts agree with tokenizing it.
"""

from __future__ import annotations

from functools import lru_cache

from xxhash import xxh3_64_intdigest

from onefleet.engines.simulated_model import BLOCK_TOKENS

TOKEN_BYTES = 4

#: What an answer is made of: four bytes each, one token a word. 64 of them.
WORDS: tuple[bytes, ...] = tuple(
    word + b" "
    for word in (
        b"the sun and sea are old but sky has its own way who can say how far one may run now air"
        b" was dry day ice hot oak ash elm fir yew bee ant fox owl elk cow hen pig ram dog cat"
        b" bay bog fen dew fog ebb arc orb gem tin red tan map key ink pen nib lid box jar cup"
    ).split(b" ")
)

#: An answer begins at one of this many places in the endless text.
_VOICES = 256

#: Tokens of prepared text for each voice; a longer answer repeats it.
_TEXT_TOKENS = 256


def count_tokens(text: bytes) -> int:
    return -(-len(text) // TOKEN_BYTES)


def tokenize(text: bytes) -> list[int]:
    """Return the ids of the text's tokens."""
    return [
        int.from_bytes(text[at : at + TOKEN_BYTES], "little")
        for at in range(0, len(text), TOKEN_BYTES)
    ]


def detokenize(ids: list[int]) -> bytes:
    """Return the text of token ids. Raises OverflowError for an id that is none."""
    return b"".join(token.to_bytes(TOKEN_BYTES, "little").rstrip(b"\0") for token in ids)


def block_hashes(prompt: bytes) -> tuple[int, ...]:
    """A hash for each whole KV block of the prompt; each covers all that is before it too."""
    size = BLOCK_TOKENS * TOKEN_BYTES
    found, before = [], 0
    for at in range(0, len(prompt) - size + 1, size):
        before = xxh3_64_intdigest(prompt[at : at + size], seed=before)
        found.append(before)
    return tuple(found)


def voice(prompt: bytes) -> int:
    """Which answer this prompt gets."""
    return xxh3_64_intdigest(prompt) % _VOICES


def words(chosen: int, start: int, count: int) -> list[bytes]:
    """Tokens start..start+count of the answer of a voice."""
    text = _voice_words(chosen)
    start %= _TEXT_TOKENS
    if start + count <= _TEXT_TOKENS:
        return text[start : start + count]
    return (text[start:] + text * (count // _TEXT_TOKENS + 1))[:count]


@lru_cache(maxsize=_VOICES)
def _voice_words(chosen: int) -> list[bytes]:
    text, state = [], chosen
    for _ in range(_TEXT_TOKENS):
        state = xxh3_64_intdigest(state.to_bytes(8, "little"))
        text.append(WORDS[state % len(WORDS)])
    return text


def embed(text: bytes, length: int) -> list[float]:
    """A unit vector: the sum of a fixed direction for each word, so that shared words are near."""
    total = [0] * length
    for word in text.lower().split() or [b""]:
        for index in range(length):
            total[index] += _component(word, index)
    norm = sum(value * value for value in total) ** 0.5 or 1.0
    return [value / norm for value in total]


@lru_cache(maxsize=65_536)
def _component(word: bytes, index: int) -> int:
    return xxh3_64_intdigest(word, seed=index) % 2001 - 1000
