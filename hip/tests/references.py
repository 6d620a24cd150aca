"""What the kernels compute, in numpy: plain, from the descriptions of the formats and operations."""

import numpy as np

# ---------------------------------------------------------------------------------------------------- weights

FLOATS = ("f32", "f16", "bf16")
# The fields of a block (offset, length), in the order of the planes, and where it has half-precision numbers.
FORMATS = {
    "f32": ([(0, 4)], []),
    "f16": ([(0, 2)], []),
    "bf16": ([(0, 2)], []),
    "q4_0": ([(2, 16), (0, 2)], [0]),
    "q4_1": ([(4, 16), (0, 4)], [0, 2]),
    "q5_0": ([(6, 16), (2, 4), (0, 2)], [0]),
    "q5_1": ([(8, 16), (4, 4), (0, 4)], [0, 2]),
    "q8_0": ([(2, 32), (0, 2)], [0]),
    "q2_k": ([(16, 64), (0, 16), (80, 4)], [80, 82]),
    "q3_k": ([(32, 64), (0, 32), (96, 12), (108, 2)], [108]),
    "q4_k": ([(16, 128), (0, 16)], [0, 2]),
    "q5_k": ([(48, 128), (16, 32), (0, 16)], [0, 2]),
    "q6_k": ([(0, 128), (128, 64), (192, 16), (208, 2)], [208]),
}


def block_len(name):
    return 1 if name in FLOATS else 256 if name.endswith("k") else 32


def columns_of(name, blocks):
    """Columns of a small matrix: an odd number where the format allows that."""
    return 37 if name in FLOATS else blocks * block_len(name)


def matrix(rng, name, rows, columns):
    """A random matrix: its planes, as device memory holds them, and its weights."""
    fields, halves = FORMATS[name]
    size = sum(length for _, length in fields)
    blocks = rng.integers(0, 256, (rows * columns // block_len(name), size), dtype=np.uint8)
    if name in FLOATS:
        values = rng.standard_normal(len(blocks)).astype(np.float32)
        raw = values.astype(np.float16).view(np.uint16) if name == "f16" else values.view(np.uint32) >> 16
        blocks = (values if name == "f32" else raw.astype(np.uint16)).view(np.uint8).reshape(blocks.shape)
    for at in halves:
        scales = (rng.standard_normal(len(blocks)) * 0.05).astype(np.float16)
        # The emulator takes subnormal halves for zero, which GPUs do not.
        scales[np.abs(scales) < 2.0**-14] = 2.0**-14
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    planes = bytearray()
    for offset, length in fields:
        planes += bytes(-len(planes) % 256)
        planes += blocks[:, offset : offset + length].tobytes()
    weights = weights_of(name, blocks).reshape(rows, columns).astype(np.float32)
    return np.frombuffer(bytes(planes), np.uint8).copy(), weights


def half(blocks, at):
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def nibbles(qs):
    return np.concatenate([qs & 15, qs >> 4], axis=1)


def six_bits(packed):
    """The scales and minima of Q4_K and Q5_K."""
    low, mins, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 6) << 4], axis=1)
    return scales, np.concatenate([mins & 63, (rest >> 4) | (mins >> 6) << 4], axis=1)


def groups(factor, scales):
    """factor * scales, spread over 256 weights, in single precision."""
    return np.repeat(factor * scales.astype(np.float32), 256 // scales.shape[1], axis=1)


def quarters(qs, h, j):
    """Two bits from bit 2j on of the h-th 32 bytes."""
    return qs[:, 32 * h : 32 * h + 32] >> (2 * j) & 3


def over_halves(part):
    """The weights 128h + 32j + l, from the part for each h and j."""
    return np.concatenate([part(h, j) for h in range(2) for j in range(4)], axis=1)


def weights_of(name, b):
    if name == "f32":
        return b.copy().view(np.float32)
    if name == "f16":
        return b.copy().view(np.float16).astype(np.float32)
    if name == "bf16":
        return (b.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if name == "q4_0":
        return half(b, 0) * (nibbles(b[:, 2:]).astype(np.float32) - 8)
    if name == "q4_1":
        return half(b, 0) * nibbles(b[:, 4:]) + half(b, 2)
    if name in ("q5_0", "q5_1"):
        start = 2 if name == "q5_0" else 4
        high = np.unpackbits(b[:, start : start + 4], axis=1, bitorder="little")
        q = (nibbles(b[:, start + 4 :]) | high << 4).astype(np.float32)
        return half(b, 0) * (q - 16) if name == "q5_0" else half(b, 0) * q + half(b, 2)
    if name == "q8_0":
        return half(b, 0) * b[:, 2:].view(np.int8)
    if name == "q2_k":
        q = over_halves(lambda h, j: quarters(b[:, 16:80], h, j))
        return groups(half(b, 80), b[:, :16] & 15) * q - groups(half(b, 82), b[:, :16] >> 4)
    if name == "q3_k":
        packed, hmask = b[:, 96:108], b[:, :32]
        low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
        high = np.concatenate([packed[:, 8:] >> (2 * i) & 3 for i in range(4)], axis=1)
        q = over_halves(lambda h, j: quarters(b[:, 32:96], h, j) | (hmask >> (4 * h + j) & 1) << 2)
        scales = (low | high << 4).astype(np.int8) - 32
        return groups(half(b, 108), scales) * (q.astype(np.float32) - 4)
    if name in ("q4_k", "q5_k"):
        qs = b[:, -128:]
        q = np.concatenate([nibbles(qs[:, 32 * p : 32 * p + 32]) for p in range(4)], axis=1)
        if name == "q5_k":
            q = q | np.concatenate([(b[:, 16:48] >> g & 1) << 4 for g in range(8)], axis=1)
        scales, mins = six_bits(b[:, 4:16])
        return groups(half(b, 0), scales) * q - groups(half(b, 2), mins)
    ql, qh = b[:, :128], b[:, 128:192]
    low = over_halves(lambda h, j: ql[:, 64 * h + 32 * (j % 2) :][:, :32] >> (4 * (j // 2)) & 15)
    q = low | over_halves(lambda h, j: quarters(qh, h, j)) << 4
    return groups(half(b, 208), b[:, 192:208].view(np.int8)) * (q.astype(np.float32) - 32)


# ---------------------------------------------------------------------------------------------------- activations


def quantized(x):
    """Activations as 8-bit integers, and for each group of 32 the words of the scale and of the sums."""
    x = x.reshape(-1, 32)
    largest = np.max(np.abs(x), axis=1, keepdims=True)
    zero = largest < np.float32(1e-30)
    with np.errstate(all="ignore"):
        inverse = np.where(zero, np.float32(0), np.float32(127) / largest).astype(np.float32)
    scale = np.where(zero, np.float32(0), largest / np.float32(127)).astype(np.float32)
    q = np.rint(x * inverse).astype(np.int8)
    sums = q.reshape(-1, 2, 16).sum(axis=2, dtype=np.int32).astype(np.int16).view(np.uint16).astype(np.uint32)
    words = np.stack([scale[:, 0].view(np.uint32), sums[:, 0] | sums[:, 1] << 16], axis=1)
    return q.reshape(-1), words


def dequantized(q, words):
    """What quantized activations stand for."""
    return q.reshape(-1, 32).astype(np.float64) * words[:, :1].copy().view(np.float32)


def norm(x, weight, eps):
    wide = np.float64(x)
    return wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + eps) * weight


# ---------------------------------------------------------------------------------------------------- attention


def rotated(x, angles, neox):
    """x [tokens][heads][columns], rotated by angles [tokens][2 * pairs], cosines first."""
    pairs = angles.shape[1] // 2
    first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    if neox:
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    cosine, sine = angles[:, None, :pairs], angles[:, None, pairs:]
    out = x.copy()
    out[..., first] = x[..., first] * cosine - x[..., second] * sine
    out[..., second] = x[..., first] * sine + x[..., second] * cosine
    return out


# Bytes of an element, and what rows are padded to.
KV_TYPES = {"f32": (4, 16), "f16": (2, 16), "q8_0": (1, 32)}


class Cache:
    """Sequences of random keys and values in pages; what was never stored is no number."""

    offset = 192

    def __init__(self, rng, name, lengths, kv_heads, k_dim, v_dim):
        self.name, self.kv_heads, self.dims = name, kv_heads, (k_dim, v_dim)
        self.page_bytes = self.offset + kv_heads * (self.head_bytes(k_dim) + self.head_bytes(v_dim)) + 64
        counts = [-(-length // 64) for length in lengths]
        self.table = np.full((len(lengths), max(counts) + 1), 0xFFFF, np.uint32)
        numbers = list(rng.permutation(sum(counts) + 1))
        for sequence, count in enumerate(counts):
            self.table[sequence, :count] = [numbers.pop() for _ in range(count)]
        self.pool = np.full((sum(counts) + 1) * self.page_bytes, 0x7F, np.uint8)
        self.rows = {}
        for sequence, length in enumerate(lengths):
            for position in range(length):
                keys = rng.standard_normal((kv_heads, k_dim)).astype(np.float32)
                values = rng.standard_normal((kv_heads, v_dim)).astype(np.float32)
                self.rows[sequence, position] = self.store(self.pool, sequence, position, keys, values)

    def padded(self, dim):
        multiple = KV_TYPES[self.name][1]
        return -(-dim // multiple) * multiple

    def head_bytes(self, dim):
        row = self.padded(dim) * KV_TYPES[self.name][0] + (self.padded(dim) // 32 * 2 if self.name == "q8_0" else 0)
        return -(-64 * row // 64) * 64

    def store(self, pool, sequence, position, keys, values):
        """Stores a position, and returns the numbers that were stored."""
        start = int(self.table[sequence, position // 64]) * self.page_bytes + self.offset
        stored = []
        for rows in (keys, values):
            for row in rows:
                padded = np.zeros(self.padded(len(row)), np.float32)
                padded[: len(row)] = row
                data, scales, numbers = self.encode(padded)
                at = start + position % 64 * len(data)
                pool[at : at + len(data)] = data
                at = start + 64 * len(data) + position % 64 * len(scales)
                pool[at : at + len(scales)] = scales
                start += self.head_bytes(len(row))
                stored.append(numbers[: len(row)])
        return stored[: len(keys)], stored[len(keys) :]

    def encode(self, row):
        none = np.zeros(0, np.uint8)
        if self.name == "f32":
            return row.view(np.uint8), none, row
        if self.name == "f16":
            halves = row.astype(np.float16)
            return halves.view(np.uint8), none, halves.astype(np.float32)
        blocks = row.reshape(-1, 32)
        scales = (np.max(np.abs(blocks), axis=1) / np.float32(127)).astype(np.float16)
        steps = scales.astype(np.float32)[:, None]
        inverse = np.where(steps > 0, np.float32(1) / np.where(steps > 0, steps, 1), 0).astype(np.float32)
        q = np.rint(np.clip(blocks * inverse, -127, 127)).astype(np.int8)
        return q.view(np.uint8).reshape(-1), scales.view(np.uint8), (q * steps).reshape(-1)

    def attend(self, q, sequences, positions, scale, softcap, window):
        out = np.zeros((*q.shape[:2], self.dims[1]))
        group = q.shape[1] // self.kv_heads
        for token, (sequence, position) in enumerate(zip(sequences, positions)):
            start = max(0, int(position) + 1 - window) if window else 0
            rows = [self.rows[int(sequence), p] for p in range(start, int(position) + 1)]
            for head in range(q.shape[1]):
                keys = np.float64([row[0][head // group] for row in rows])
                values = np.float64([row[1][head // group] for row in rows])
                scores = keys @ np.float64(q[token, head]) * scale
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - np.max(scores))
                out[token, head] = weights @ values / np.sum(weights)
        return out


# ---------------------------------------------------------------------------------------------------- sampling

ROW = np.dtype([("seed", "u8"), ("step", "u8"), ("log_min_p", "f8"), ("temperature", "f4"), ("top_p", "f4"),
                ("typical", "f4"), ("top_k", "u4"), ("repetition", "f4"), ("frequency", "f4"), ("presence", "f4"),
                ("logits", "u4"), ("first_edit", "u4"), ("biases", "u4"), ("counts", "u4"), ("unused", "u4")])
CHOICE = np.dtype([("token", "u4"), ("logit", "f4"), ("best", "f4"), ("unused", "u4"), ("total", "u8")])


def exp_exact(x):
    """exp for x <= 0, in single precision, with the same roundings as the kernels."""
    f = np.float32
    x = np.where(x > f(-40), x, f(-40)).astype(f)
    rounded = x * f(1.44269504) + f(12582912)
    n = rounded - f(12582912)
    r = (x - n * f(0.6933594)) - n * f(-2.1219444e-4)
    q = (((f(1.381454e-3) * r + f(8.368745e-3)) * r + f(4.166839e-2)) * r + f(0.1666652)) * r + f(0.49999993)
    mantissa = (q * (r * r) + r) + f(1)
    return (mantissa.view(np.uint32) + (rounded.view(np.uint32) << 23)).view(f)


def weights_from(x):
    return (np.float64(exp_exact(x)) + 4096.0).view(np.uint64) - np.float64(4096).view(np.uint64)


def uniform(seed, step):
    """The first 64 bits of Philox4x32-10."""
    word = 0xFFFFFFFF
    c, k = [step & word, step >> 32, 0, 0], [seed & word, seed >> 32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & word, (a >> 32) ^ c[3] ^ k[1], a & word]
        k = [(k[0] + 0x9E3779B9) & word, (k[1] + 0xBB67AE85) & word]
    return c[1] << 32 | c[0]


class Sampling:
    """Rows of logits with different settings, and what is drawn from them."""

    def __init__(self, rng, size):
        settings = [(0.0, 0, 1.0, 0.0, 1.0), (0.8, 40, 0.95, 0.05, 1.0), (1.0, 0, 0.9, 0.0, 1.0),
                    (4.0, 0, 1.0, 0.0, 1.0), (2.0, 400, 1.0, 0.01, 1.0), (1.5, 60, 0.95, 0.0, 0.7),
                    (3.0, 0, 0.97, 0.001, 1.0)]
        self.size, count = size, len(settings)
        self.rows = np.zeros(count, ROW)
        self.logits = (rng.standard_normal((count, size)) * 2).astype(np.float32)
        self.logits[4] = np.round(self.logits[4])
        self.logits[:, 7], self.logits[:, 9] = np.nan, -np.inf
        self.logits[3, 11] = np.inf
        # Biases for two rows, and how often tokens were there.
        bias = np.array([1.5, 2, -np.inf], np.float32).view(np.uint32)
        self.edits = np.array([[3, bias[0]], [7, bias[1]], [60, 1], [5, 2],
                               [7, bias[1]], [60, bias[2]], [5, 2], [size - 1, 1]], np.uint32)
        for index, (row, (temperature, top_k, top_p, min_p, typical)) in enumerate(zip(self.rows, settings)):
            row["seed"] = rng.integers(1 << 63)
            row["temperature"], row["top_k"], row["top_p"], row["typical"] = temperature, top_k, top_p, typical
            row["log_min_p"] = np.log(min_p) if min_p else -np.inf
            row["repetition"], row["frequency"], row["presence"] = 1.3, 0.2, 0.1
            row["logits"] = count - 1 - index
        for index in (1, 2):
            self.rows[index]["first_edit"], self.rows[index]["biases"] = 4 * (index - 1), 2
            self.rows[index]["counts"] = 2
        self.own = self.logits[self.rows["logits"]]
        self.finite = np.where(self.own == np.inf, np.finfo(np.float32).max, self.own)

    def scores(self):
        """The scores, their peaks, and those of the logits."""
        peaks = -(-self.size // 64)
        scores = self.finite.copy()
        for row, score in zip(self.rows, scores):
            edits = self.edits[row["first_edit"] :][: row["biases"] + row["counts"]]
            for i, (token, word) in enumerate(edits):
                if i < row["biases"]:
                    score[token] += np.uint32(word).view(np.float32)
                else:
                    scaled = score[token] / row["repetition"] if score[token] > 0 else score[token] * row["repetition"]
                    score[token] = scaled - (np.float32(word) * row["frequency"] + row["presence"])
        both = np.full((2, len(self.rows), peaks * 64), -np.inf, np.float32)
        both[0, :, : self.size], both[1, :, : self.size] = scores, self.finite
        scores = both[0].copy()
        both[np.isnan(both)] = -np.inf
        return np.concatenate([scores, *both.reshape(2, len(self.rows), peaks, 64).max(axis=3)], axis=1)

    def totals(self):
        """The sums of the weights of each 2048 tokens: of scores, of scores at the temperature, of logits; the best."""
        out = []
        for row, score, finite in zip(self.rows, self.scores()[:, : self.size], self.finite):
            best, raw_best = np.nanmax(score), np.nanmax(finite)
            ranked = row["temperature"] == 0 or row["top_k"] > 0
            edited = row["biases"] + row["counts"] > 0
            starts = np.arange(0, self.size, 2048)
            sums = np.zeros((3, len(starts)), np.uint64)
            if not (ranked and edited):
                sums[0] = np.add.reduceat(weights_from(score - best), starts)
            if not ranked:
                floor = np.float32(np.float64(best) + row["log_min_p"])
                weights = weights_from((score - best) / row["temperature"])
                sums[1] = np.add.reduceat(np.where(score >= floor, weights, 0), starts)
            sums[2] = np.add.reduceat(weights_from(finite - raw_best), starts)
            bits = np.array([best, raw_best], np.float32).view(np.uint64)
            out.append(np.concatenate([sums.reshape(-1), bits]))
        return np.stack(out)

    def choices(self):
        """The tokens that are drawn, and what their probabilities are made of."""
        scores, choices = self.scores()[:, : self.size], np.zeros(len(self.rows), CHOICE)
        for choice, row, score, finite in zip(choices, self.rows, scores, self.finite):
            order = np.argsort(np.where(np.isfinite(score), -score, np.inf), kind="stable")
            order = order[np.isfinite(score[order])]
            if row["temperature"] == 0:
                order = order[:1]
            if row["top_k"]:
                order = order[: row["top_k"]]
            if row["typical"] < 1:
                order = self.typical(row, score, order)
            best = score[order[0]]
            likely = np.cumsum(weights_from(score[order] - best))
            if row["log_min_p"] > -np.inf:
                order = order[score[order] >= np.float32(np.float64(best) + row["log_min_p"])]
            if row["top_p"] < 1:
                target = max(1, int(np.ceil(np.float64(row["top_p"]) * np.float64(likely[-1]))))
                order = order[: np.searchsorted(likely[: len(order)], target) + 1]
            if row["temperature"] > 0:
                mass = np.cumsum(weights_from((score[order] - best) / row["temperature"]))
                before = uniform(int(row["seed"]), int(row["step"])) * int(mass[-1]) >> 64
                order = order[np.searchsorted(mass, before + 1) :]
            choice["token"], choice["logit"], choice["best"] = order[0], finite[order[0]], np.nanmax(finite)
            choice["total"] = np.sum(weights_from(finite - np.nanmax(finite)))
        return choices

    @staticmethod
    def typical(row, score, order):
        """Those of the ranked tokens whose surprisals are nearest to the entropy."""
        distances = score[order[0]] - score[order]
        weights = weights_from(-distances)
        mean = np.float64(np.sum((np.float64(weights) * distances).astype(np.uint64)))
        oddities = np.float64(distances) * np.float64(np.sum(weights)) - mean
        nearest = np.argsort(np.abs(oddities.astype(np.float32)), kind="stable")
        target = int(np.ceil(np.float64(row["typical"]) * np.float64(np.sum(weights))))
        end = np.searchsorted(np.cumsum(weights[nearest]), target) + 1
        return order[np.sort(nearest[:end])]
