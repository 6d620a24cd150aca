#!/usr/bin/env python3
"""tiny.py FILE [LAYERS]: writes a random llama of 2 layers and 256 columns in Q4_K and Q6_K, for runs in emulation."""

import random
import struct
import sys

EMBED, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 256, 4, 2, 64, 512
U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, kind, value):
    return string(key) + struct.pack("<I", kind) + value


def array(kind, values):
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


def u32(value):
    return struct.pack("<I", value)


def half(value):
    return struct.pack("<e", value)


def q4_k(count, deviation):
    step = deviation / 4.6 / 40
    start = half(step) + half(7.5 * step) + bytes([0xA8] * 8) + bytes([0x88] * 4)
    return b"".join(start + random.randbytes(128) for _ in range(count // 256))


def q6_k(count, deviation):
    end = bytes([40] * 16) + half(deviation / 18.5 / 40)
    return b"".join(random.randbytes(192) + end for _ in range(count // 256))


def ones(count, _):
    return struct.pack(f"<{count}f", *[1.0] * count)


TYPES = {"f32": (0, ones), "q4_k": (12, q4_k), "q6_k": (14, q6_k)}


def vocabulary():
    """The 256 bytes as byte-level BPE writes them, and a token that ends texts."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    texts = {byte: chr(byte) for byte in kept} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [texts[byte] for byte in range(256)] + ["<|end|>"]


def write(path, layers):
    random.seed(7)
    tokens, tensors = vocabulary(), []

    def tensor(name, kind, *columns_and_rows):
        count = 1
        for size in columns_and_rows:
            count *= size
        deviation = 0.5 if name == "token_embd.weight" else (2 / columns_and_rows[0]) ** 0.5
        number, make = TYPES[kind]
        tensors.append((name, columns_and_rows, number, make(count, deviation)))

    tensor("token_embd.weight", "q6_k", EMBED, len(tokens))
    for layer in range(layers):
        block, other = f"blk.{layer}.", "q6_k" if layer % 2 else "q4_k"
        tensor(block + "attn_norm.weight", "f32", EMBED)
        tensor(block + "ffn_norm.weight", "f32", EMBED)
        tensor(block + "attn_q.weight", "q4_k", EMBED, HEADS * HEAD_DIM)
        tensor(block + "attn_k.weight", "q4_k", EMBED, KV_HEADS * HEAD_DIM)
        tensor(block + "attn_v.weight", other, EMBED, KV_HEADS * HEAD_DIM)
        tensor(block + "attn_output.weight", "q4_k", HEADS * HEAD_DIM, EMBED)
        tensor(block + "ffn_gate.weight", "q4_k", EMBED, FEED_FORWARD)
        tensor(block + "ffn_up.weight", "q4_k", EMBED, FEED_FORWARD)
        tensor(block + "ffn_down.weight", other, FEED_FORWARD, EMBED)
    tensor("output_norm.weight", "f32", EMBED)
    tensor("output.weight", "q6_k", EMBED, len(tokens))

    numbers = {"context_length": 2048, "embedding_length": EMBED, "block_count": layers,
               "feed_forward_length": FEED_FORWARD, "attention.head_count": HEADS,
               "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
               "attention.value_length": HEAD_DIM, "rope.dimension_count": HEAD_DIM, "vocab_size": len(tokens)}
    floats = {"rope.freq_base": 1e4, "attention.layer_norm_rms_epsilon": 1e-5}
    kinds = [struct.pack("<i", 3 if token == tokens[-1] else 1) for token in tokens]
    metadata = [entry("general.architecture", STRING, string("llama")), entry("general.name", STRING, string("tiny"))]
    metadata += [entry(f"llama.{key}", U32, u32(value)) for key, value in numbers.items()]
    metadata += [entry(f"llama.{key}", F32, struct.pack("<f", value)) for key, value in floats.items()]
    metadata += [
        entry("tokenizer.ggml.model", STRING, string("gpt2")),
        entry("tokenizer.ggml.pre", STRING, string("llama-bpe")),
        entry("tokenizer.ggml.tokens", ARRAY, array(STRING, [string(token) for token in tokens])),
        entry("tokenizer.ggml.token_type", ARRAY, array(I32, kinds)),
        entry("tokenizer.ggml.merges", ARRAY, array(STRING, [])),
        entry("tokenizer.ggml.bos_token_id", U32, u32(len(tokens) - 1)),
        entry("tokenizer.ggml.eos_token_id", U32, u32(len(tokens) - 1)),
    ]
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata)
    at = 0
    for name, sizes, number, data in tensors:
        out += string(name) + u32(len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
        out += struct.pack("<IQ", number, at)
        at += (len(data) + 31) // 32 * 32
    out += bytes(-len(out) % 32)
    for *_, data in tensors:
        out += data + bytes(-len(data) % 32)
    with open(path, "wb") as file:
        file.write(out)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    write(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
