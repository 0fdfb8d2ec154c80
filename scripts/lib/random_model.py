"""A checkpoint with the shape of a Llama 3 and random weights, for measuring speed where no package carries such a model.

Tensor types are those of a Q4_K_M file.  The vocabulary is the beginning of another model's, whose merges make its tokens;
of that model only the metadata are read.
Weights repeat after some megabytes: caches go by addresses, so that no reader notices.
"""
import dataclasses
import os
import pathlib
import random
import struct

VOCAB = 128256
SEED = 20261124
# In the file's name: another content must not be taken for an earlier one.
REVISION = 2
ALIGNMENT = 32
# Types of values and of tensors, as the GGUF specification numbers them.
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9
F32, Q4_K, Q6_K = 0, 12, 14
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Bytes of a block of 256 weights.
BLOCK_BYTES = {Q4_K: 144, Q6_K: 210}
# How many different blocks there are of each type.
POOL_BLOCKS = 1 << 15
CONTROL = 3


@dataclasses.dataclass(frozen=True)
class Shape:
    """How large a model is."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    # Whether the embedding is the head too.
    tied: bool

    @property
    def title(self):
        return f"Random weights in the shape of {self.name}, GGUF Q4_K_M mix"


SHAPES = {
    "1b": Shape("Llama 3.2 1B", 2048, 16, 32, 8, 64, 8192, tied=True),
    "8b": Shape("Llama 3.1 8B", 4096, 32, 32, 8, 128, 14336, tied=False),
}
TITLE = SHAPES["1b"].title


class Reader:
    """The metadata of a GGUF file."""

    def __init__(self, file):
        self.file = file
        magic, _version, _tensors, pairs = self.take("4sIQQ")
        if magic != b"GGUF":
            raise ValueError(f"{file.name} is no GGUF file")
        self.values = {self.string(): self.value(self.take("I")[0]) for _ in range(pairs)}

    def take(self, layout):
        return struct.unpack("<" + layout, self.file.read(struct.calcsize("<" + layout)))

    def string(self):
        return self.file.read(self.take("Q")[0]).decode("utf-8", "surrogateescape")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            of, count = self.take("IQ")
            return [self.value(of) for _ in range(count)]
        return self.take(SCALARS[kind])[0]


def string(text):
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    """A key and its value; of a list, `kind` is that of its elements."""
    def one(item):
        return string(item) if kind == STRING else struct.pack("<" + SCALARS[kind], item)
    if isinstance(value, list):
        return string(key) + struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(map(one, value))
    return string(key) + struct.pack("<I", kind) + one(value)


def vocabulary(donor):
    """The first tokens of the donor, with the merges that make them, and at the end what starts and ends a text."""
    with donor.open("rb") as file:
        values = Reader(file).values
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokens = values["tokenizer.ggml.tokens"][:VOCAB - len(special)]
    if len(tokens) < VOCAB - len(special):
        raise ValueError(f"{donor} has {len(tokens)} tokens, fewer than the model")
    known = set(tokens)
    merges = [merge for merge in values["tokenizer.ggml.merges"] if merge.replace(" ", "") in known]
    kinds = values["tokenizer.ggml.token_type"][:len(tokens)] + [CONTROL] * len(special)
    return b"".join((
        pair("tokenizer.ggml.model", STRING, values["tokenizer.ggml.model"]),
        pair("tokenizer.ggml.pre", STRING, values["tokenizer.ggml.pre"]),
        pair("tokenizer.ggml.tokens", STRING, tokens + special),
        pair("tokenizer.ggml.token_type", INT32, kinds),
        pair("tokenizer.ggml.merges", STRING, merges),
        pair("tokenizer.ggml.bos_token_id", UINT32, VOCAB - 2),
        pair("tokenizer.ggml.eos_token_id", UINT32, VOCAB - 1),
    )), 7


def metadata(shape):
    """The metadata that say how large the model is, and their number."""
    numbers = {
        "context_length": 131072, "embedding_length": shape.hidden, "block_count": shape.layers,
        "feed_forward_length": shape.feed_forward, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads, "rope.dimension_count": shape.head_dim, "vocab_size": VOCAB,
    }
    floats = {"rope.freq_base": 500000.0, "attention.layer_norm_rms_epsilon": 1e-5}
    pairs = [pair("general.architecture", STRING, "llama"), pair("general.name", STRING, shape.title)]
    pairs += [pair(f"llama.{key}", UINT32, value) for key, value in numbers.items()]
    pairs += [pair(f"llama.{key}", FLOAT32, value) for key, value in floats.items()]
    return b"".join(pairs), len(pairs)


def tensors(shape):
    """Name, rows, columns and type of each tensor; a vector has no rows."""
    hidden, layers, feed_forward = shape.hidden, shape.layers, shape.feed_forward
    yield "token_embd.weight", VOCAB, hidden, Q6_K if shape.tied else Q4_K
    for layer in range(layers):
        # Half of the layers hold these two in more bits, as llama.cpp's mix has it.
        wide = Q6_K if layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2 else Q4_K
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", 0, hidden, F32
        yield f"{block}.attn_q.weight", shape.heads * shape.head_dim, hidden, Q4_K
        yield f"{block}.attn_k.weight", shape.kv_heads * shape.head_dim, hidden, Q4_K
        yield f"{block}.attn_v.weight", shape.kv_heads * shape.head_dim, hidden, wide
        yield f"{block}.attn_output.weight", hidden, shape.heads * shape.head_dim, Q4_K
        yield f"{block}.ffn_norm.weight", 0, hidden, F32
        yield f"{block}.ffn_gate.weight", feed_forward, hidden, Q4_K
        yield f"{block}.ffn_up.weight", feed_forward, hidden, Q4_K
        yield f"{block}.ffn_down.weight", hidden, feed_forward, wide
    yield "output_norm.weight", 0, hidden, F32
    if not shape.tied:
        yield "output.weight", VOCAB, hidden, Q6_K


def pool(kind, rng):
    """Blocks of 256 weights each, of about 0.02 in size."""
    blocks = []
    for _ in range(POOL_BLOCKS):
        if kind == Q4_K:
            # Six bits of scale times four of code; the minimum takes away what these are on average.
            blocks.append(struct.pack("<ee", 1.3e-4, 7.5 * 1.3e-4) + rng.randbytes(12 + 128))
        else:
            scales = bytes(rng.randrange(-16, 16) & 0xff for _ in range(16))
            blocks.append(rng.randbytes(128 + 64) + scales + struct.pack("<e", 1.4e-4))
    if len(blocks[0]) != BLOCK_BYTES[kind]:
        raise ValueError(f"a block of type {kind} has {len(blocks[0])} bytes")
    return b"".join(blocks)


def data_of(rows, columns, kind, pools, rng):
    """A tensor's bytes, in pieces: the pool again and again, from a random block on."""
    if kind == F32:
        yield struct.pack("<f", 1.0) * columns
        return
    blocks, size = pools[kind], BLOCK_BYTES[kind]
    left, at = rows * columns // 256, rng.randrange(POOL_BLOCKS)
    while left:
        count = min(left, POOL_BLOCKS - at)
        yield blocks[at * size:(at + count) * size]
        left, at = left - count, 0


def size_of(rows, columns, kind):
    return 4 * columns if kind == F32 else rows * columns // 256 * BLOCK_BYTES[kind]


def aligned(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


def make(path, donor, shape=SHAPES["1b"]):
    """Writes the file; `donor` is a GGUF file with a byte-level vocabulary of more tokens than ours."""
    path = pathlib.Path(path)
    (sizes, size_count), (words, word_count) = metadata(shape), vocabulary(donor)
    described, offset = [], 0
    for name, rows, columns, kind in tensors(shape):
        dims = (columns, rows) if rows else (columns,)
        described.append(string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
        offset += aligned(size_of(rows, columns, kind))
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(described), size_count + word_count) + sizes + words + b"".join(described)
    rng = random.Random(SEED)
    pools = {kind: pool(kind, rng) for kind in (Q4_K, Q6_K)}
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(head.ljust(aligned(len(head)), b"\0"))
        for _, rows, columns, kind in tensors(shape):
            file.writelines(data_of(rows, columns, kind, pools, rng))
            file.write(bytes(aligned(size_of(rows, columns, kind)) - size_of(rows, columns, kind)))
    os.replace(part, path)
    return path
