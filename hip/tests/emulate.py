#!/usr/bin/env python3
"""Runs the machine code of every kernel in an emulator of AMD's instruction sets, and compares with numpy.

    RUN_HSACO=run_hsaco.py TINYGRAD=tinygrad emulate.py [--objects DIR] [--targets gfx1100,…] [--kernels REGEX]
                                                            [--table FILE]

RUN_HSACO is a module with a class CodeObject(path) whose launch(name, grid=, block=, args=) executes one kernel of an
object; numpy arrays are pointers, and are written in place. It emulates by means of tinygrad. The objects are built
where DIR has none for a target. --table writes the results as a Markdown table. Exits with 1 where a result is wrong; an
instruction that the emulator does not know is reported, but says nothing about the kernel.
"""

import argparse
import importlib.util
import os
import pathlib
import re
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import kernels  # noqa: E402
from references import (FLOATS, FORMATS, KV_TYPES, Cache, Sampling, columns_of, dequantized,  # noqa: E402
                        matrix, norm, quantized, rotated)

TARGETS = ["gfx1100", "gfx1201", "gfx942"]
# Where the emulator does not know the instructions for caches (gfx1201), or takes them for loads (gfx942), and gets
# nothing back from atomic ones.
WITHOUT_ATOMICS = ["gfx1201", "gfx942"]
CHECKS = {}
# What the emulator gets wrong. Which kernels have halves in registers from v128 on depends on the compiler.
UNCHECKED = {(kernel, "gfx942"): "not emulated (halves in registers from v128 on)" for kernel in """
    attend_decode_f16_4 attend_decode_q8_0_8 matmul_core_bf16_16 matmul_core_bf16_32 matmul_core_bf16_64
    matmul_core_q6_k_32 matvec_q2_k_8 matvec_q3_k_4 matvec_q3_k_8 matvec_q4_0_8 matvec_q4_1_8 matvec_q5_0_8
    matvec_q5_1_8 matvec_q6_k_8 matvec_q8_0_8 matvec_three_q2_k_8 matvec_three_q3_k_4 matvec_three_q3_k_8
    matvec_three_q4_0_8 matvec_three_q4_1_8 matvec_three_q4_k_q6_k_8 matvec_three_q5_0_8 matvec_three_q5_1_8
    matvec_three_q5_k_q6_k_8 matvec_three_q6_k_8 matvec_glu_q2_k_4 matvec_glu_q2_k_8 matvec_glu_q3_k_2
    matvec_glu_q3_k_4 matvec_glu_q5_0_8 matvec_glu_q5_1_8 matvec_glu_q6_k_4 matvec_glu_q6_k_8 matvec_residual_q2_k_8
    matvec_residual_q3_k_4 matvec_residual_q3_k_8 matvec_residual_q6_k_8""".split()}
# It multiplies all 32 bits where v_mul_i32_i24 takes 24 and their sign, and compilers leave rubbish above these.
UNCHECKED |= {(f"matvec_{form}q3_k_1", target): "not emulated (24-bit products)"
              for form in ("", "three_", "glu_", "residual_") for target in TARGETS}
# It reads registers from v128 on for the zeros that scores begin with, which WMMA takes as a constant.
UNCHECKED |= {(f"attend_waves_{name}_{n}", "gfx1201"): "not emulated (constants that WMMA adds to)"
              for name in ("f16", "q8_0") for n in (64, 128)}


def check(*kernels):
    """Registers a function that checks a kernel: it gets a launcher and the kernel's name, and yields pairs of what was
    found and what is expected, with the largest error that is allowed, relative to the largest number expected."""

    def register(function):
        for kernel in kernels:
            CHECKS[kernel] = function
        return function

    return register


def seeded(kernel):
    return np.random.default_rng(sum(kernel.encode()))


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- weights


@check(*[f"dequant_rows_{name}" for name in FORMATS])
def dequant(launch, kernel):
    rng, name = seeded(kernel), kernel.removeprefix("dequant_rows_")
    planes, weights = matrix(rng, name, 3, columns_of(name, 2))
    rows, columns = weights.shape
    ids = np.array([2, 0, 7, 1], np.uint32)
    out = np.full((4, columns), np.nan, np.float32)
    per_thread = 1 if name in FLOATS else 32
    launch((-(-columns // per_thread // 128) or 1, 4), planes, ids, out, np.uint32(rows), np.uint32(columns))
    yield out, np.stack([weights[2], weights[0], 0 * weights[0], weights[1]]), 0


@check("quantize_q8")
def quantize(launch, kernel):
    x = normal(seeded(kernel), 9 * 32) * np.repeat(np.float32([1, 1e-35, 1e30, 0, 3e-3, 1, 1, 1, 1]), 32)
    q, groups = np.zeros(x.size, np.int8), np.zeros((9, 2), np.uint32)
    launch((2,), x, q, groups, np.uint64(x.size))
    expected = quantized(x)
    yield q, expected[0], 0
    yield groups, expected[1], 0


EPS = np.float32(1e-2)


def deferred_norm(rng, count, columns):
    """Sums of 32 squares, and the factors of the norms that they belong to."""
    squares = np.square(normal(rng, count, columns // 32)) * np.float32(32)
    return squares, 1 / np.sqrt(np.float64(squares).sum(axis=1, keepdims=True) / columns + EPS)


@check(*[f"matvec_{name}_{n}" for name in FORMATS for n in (1, 2, 4, 8)],
       *[f"matmul_{name}" for name in FORMATS])
def product(launch, kernel):
    rng, parts = seeded(kernel), kernel.split("_", 1)
    name, n = (parts[1].rsplit("_", 1) if parts[0] == "matvec" else (parts[1], 0))
    n = int(n)
    rows, count = (5, max(1, n - n // 4)) if n else (67, 3)
    planes, weights = matrix(rng, name, rows, columns_of(name, 1 if name.endswith("k") else 3))
    columns = weights.shape[1]
    x, bias, residual = normal(rng, count, columns), normal(rng, rows), normal(rng, count, rows)
    out = np.full((count, rows), np.nan, np.float32)
    inputs = [x]
    if name not in FLOATS:
        q, groups = quantized(x)
        inputs, x = [q, groups], dequantized(q, groups).reshape(x.shape)
    grid = (-(-rows // 4),) if n else (2, 1)
    sizes = [np.uint32(rows), np.uint32(columns), np.uint32(count)]
    few = n and name not in FLOATS
    squares, factors = deferred_norm(rng, count, columns) if few else (None, 1)
    launch(grid, planes, *inputs, out, bias, residual, *sizes, *([squares, EPS] if few else []))
    yield out, factors * (np.float64(x) @ np.float64(weights).T) + bias + residual, 2e-6
    launch(grid, planes, *inputs, out, None, None, *sizes, *([None, EPS] if few else []))
    yield out, np.float64(x) @ np.float64(weights).T, 2e-6


QUANTIZED = [name for name in FORMATS if name not in FLOATS]


@check(*[f"matvec_three_{name}_{n}" for name in [*QUANTIZED, "q4_k_q6_k", "q5_k_q6_k"] for n in (1, 2, 4, 8)])
def three_products(launch, kernel):
    rng = seeded(kernel)
    names, n = kernel.removeprefix("matvec_three_").rsplit("_", 1)
    first, last = (names[:4], names[5:]) if "_q6_k" in names else (names, names)
    count, rows = max(1, int(n) - int(n) // 4), (5, 3, 4)
    kinds = [first, first, last]
    parts = [matrix(rng, name, r, columns_of(name, 1 if name.endswith("k") else 3)) for name, r in zip(kinds, rows)]
    columns = parts[0][1].shape[1]
    q, groups = quantized(normal(rng, count, columns))
    x = np.float64(dequantized(q, groups)).reshape(count, columns)
    bias = normal(rng, rows[1])
    out = [np.full((count, r), np.nan, np.float32) for r in rows]
    squares, factors = deferred_norm(rng, count, columns)
    launch((2 + 1 + 1,), *[planes for planes, _ in parts], q, groups, *out, None, bias, None, *np.uint32(rows),
           np.uint32(columns), np.uint32(count), squares, EPS)
    for i, (_, weights) in enumerate(parts):
        yield out[i], factors * (x @ np.float64(weights).T) + (bias if i == 1 else 0), 2e-6


@check(*[f"matvec_glu_{name}_{n}" for name in QUANTIZED for n in (1, 2, 4, 8)])
def gated_products(launch, kernel):
    rng = seeded(kernel)
    name, n = kernel.removeprefix("matvec_glu_").rsplit("_", 1)
    count, rows = max(1, int(n) - int(n) // 4), 32
    parts = [matrix(rng, name, rows, columns_of(name, 1 if name.endswith("k") else 3)) for _ in range(2)]
    columns = parts[0][1].shape[1]
    q, groups = quantized(normal(rng, count, columns))
    x = np.float64(dequantized(q, groups)).reshape(count, columns)
    out = np.full((count, rows), np.nan, np.float32)
    out_q, out_groups = np.zeros(count * rows, np.int8), np.zeros((count * rows // 32, 2), np.uint32)
    gelu = int(n) % 4 == 0
    squares, factors = deferred_norm(rng, count, columns)
    launch((1,), parts[0][0], parts[1][0], q, groups, out, out_q, out_groups, np.uint32(gelu), np.uint32(rows),
           np.uint32(columns), np.uint32(count), squares, EPS)
    gate, up = (factors * (x @ np.float64(weights).T) for _, weights in parts)
    yield out, (gelu_of(gate) if gelu else silu_of(gate)) * up, 2e-6
    yield out_q, quantized(out)[0].reshape(-1), 0
    yield out_groups, quantized(out)[1].reshape(-1, 2), 0


@check(*[f"matvec_residual_{name}_{n}" for name in QUANTIZED for n in (1, 2, 4, 8)])
def residual_product(launch, kernel):
    rng = seeded(kernel)
    name, n = kernel.removeprefix("matvec_residual_").rsplit("_", 1)
    count, rows = max(1, int(n) - int(n) // 4), 32
    planes, weights = matrix(rng, name, rows, columns_of(name, 1 if name.endswith("k") else 3))
    columns = weights.shape[1]
    q, groups = quantized(normal(rng, count, columns))
    x = np.float64(dequantized(q, groups)).reshape(count, columns)
    stream, bias, norm_weights = normal(rng, count, rows), normal(rng, rows), normal(rng, rows)
    expected = stream + bias + x @ np.float64(weights).T
    out_q, out_groups = np.zeros(count * rows, np.int8), np.zeros((count * rows // 32, 2), np.uint32)
    squares = np.zeros((count, rows // 32), np.float32)
    launch((1,), planes, q, groups, stream, bias, norm_weights, out_q, out_groups, squares, np.uint32(rows),
           np.uint32(columns), np.uint32(count))
    yield stream, expected, 2e-6
    yield squares, np.square(np.float64(stream)).sum(axis=1, keepdims=True), 1e-6
    yield out_q, quantized(stream * norm_weights)[0].reshape(-1), 0
    yield out_groups, quantized(stream * norm_weights)[1].reshape(-1, 2), 0


def halved(x):
    """Rows as f16, and the powers of two that they were divided by."""
    scales = np.exp2(np.floor(np.log2(np.abs(x).max(axis=1, keepdims=True))) - 14).astype(np.float32)
    return (x / scales).astype(np.float16), scales


def in_order(halves):
    """Halves as memory holds them: eight columns of each of 16 rows, and then the next eight."""
    rows, columns = halves.shape
    padded = np.zeros((-(-rows // 16) * 16, columns), halves.dtype)
    padded[:rows] = halves
    return np.ascontiguousarray(padded.reshape(-1, 16, columns // 8, 8).swapaxes(1, 2))


@check("halve_silu", "halve_gelu")
def halve_glu(launch, kernel):
    rng = seeded(kernel)
    gate, up = normal(rng, 3, 1112), normal(rng, 3, 1112)
    halves, scales = in_order(np.zeros(gate.shape, np.float16)), np.zeros((3, 1), np.float32)
    launch((3,), gate, up, halves, scales, np.uint32(1112))
    value = np.float64(gate)
    value *= up / (1 + np.exp(-value if kernel == "halve_silu" else -1.5957691 * (value + 0.044715 * value**3)))
    yield halves, in_order((value / halved(value)[1]).astype(np.float32)), 5e-4
    yield scales, halved(value)[1], 0


@check("halve_norm")
def halve_norm(launch, kernel):
    rng = seeded(kernel)
    x, add, weight = normal(rng, 3, 1112), normal(rng, 3, 1112), normal(rng, 1112)
    stream, halves, scales = x.copy(), in_order(np.zeros(x.shape, np.float16)), np.zeros((3, 1), np.float32)
    launch((3,), stream, add, weight, halves, scales, np.uint32(1112), np.float32(1e-5))
    yield stream, x + add, 0
    value = np.float64(x + add)
    value *= weight / np.sqrt((value**2).mean(axis=1, keepdims=True) + 1e-5)
    yield halves, in_order((value / halved(value)[1]).astype(np.float32)), 5e-4
    yield scales, halved(value)[1], 0


CORE_TYPES = [name for name in FORMATS if name != "f32"]
# Columns and weight rows of a block.
CORE_TILES = {16: 64, 32: 128, 64: 128, 128: 128}


@check("halve_rows")
def halve_rows(launch, kernel):
    x = normal(seeded(kernel), 3, 1112) * np.float32([[1], [1e30], [1e-30]])
    expected = in_order(halved(x)[0])
    halves, scales = np.zeros_like(expected), np.zeros((3, 1), np.float32)
    launch((3,), x, halves, scales, np.uint32(1112))
    yield halves.view(np.uint16), expected.view(np.uint16), 0
    yield scales, halved(x)[1], 0


@check(*[f"matmul_core_{name}_{n}" for name in CORE_TYPES for n in CORE_TILES])
def product_on_matrix_cores(launch, kernel):
    rng = seeded(kernel)
    name, n = kernel.removeprefix("matmul_core_").rsplit("_", 1)
    block_rows, rows, count = CORE_TILES[int(n)], 67, 19
    planes, weights = matrix(rng, name, rows, 256 if name.endswith("k") else 96)
    columns = weights.shape[1]
    x, bias = normal(rng, count, columns), normal(rng, rows)
    halves, scales = halved(x)
    # The same matrix twice, and none.
    out, other = np.full((2, count, rows), np.nan, np.float32)
    grid = (2 * -(-rows // block_rows), -(-count // int(n)))
    splits = 1 if launch.target in WITHOUT_ATOMICS else 3
    partials = np.zeros(grid[0] * grid[1] * splits * block_rows * int(n), np.float32)
    counters = np.zeros(grid[0] * grid[1], np.uint32)
    launch((*grid, splits), planes, planes, None, in_order(halves), scales, out, other, None, bias, None, None,
           np.uint32(rows), np.uint32(rows), np.uint32(0), np.uint32(columns), np.uint32(count), np.uint32(splits),
           partials, counters)
    yield counters, np.zeros_like(counters), 0
    # Weights have f16's precision; in the formats below their f16 is what the kernel computes.
    exact = name in ("f16", "bf16", "q4_0", "q5_0", "q8_0")
    weights = np.float64(weights.astype(np.float16) if exact else weights)
    expected = (np.float64(halves) * scales) @ weights.T
    yield out, expected + bias, 2e-6 if exact else 1e-3
    yield other, expected, 2e-6 if exact else 1e-3


# ---------------------------------------------------------------------------------------------------- rows


@check("rms_norm")
def rms_norm(launch, kernel):
    rng = seeded(kernel)
    for columns in (37, 288):
        x, add, weight = normal(rng, 2, columns), normal(rng, 2, columns), normal(rng, columns)
        out, found = np.zeros_like(x), x.copy()
        quantizes = columns % 32 == 0
        q = np.zeros(x.size, np.int8) if quantizes else None
        groups = np.zeros((x.size // 32, 2), np.uint32) if quantizes else None
        launch((2,), found, add, weight, out, q, groups, np.uint32(columns), np.float32(1e-5))
        yield found, x + add, 0
        yield out, norm(x + add, weight, 1e-5), 2e-6
        if quantizes:
            yield q, quantized(out)[0], 0
            yield groups, quantized(out)[1], 0


@check("head_norm")
def head_norm(launch, kernel):
    rng = seeded(kernel)
    x, weight = normal(rng, 5, 80), normal(rng, 80)
    found = x.copy()
    launch((2,), found, weight, np.uint32(5), np.uint32(80), np.float32(1e-6))
    yield found, norm(x, weight, 1e-6), 2e-6


@check("add", "scale", "softcap")
def elementwise(launch, kernel):
    rng = seeded(kernel)
    x, y = normal(rng, 300), normal(rng, 300)
    found = x.copy()
    second = y if kernel == "add" else np.float32(3)
    launch((2,), found, second, np.uint64(300))
    expected = {"add": x + y, "scale": x * np.float32(3), "softcap": 3 * np.tanh(np.float64(x) / 3)}[kernel]
    yield found, expected, 1e-6 if kernel == "softcap" else 0


def silu_of(x):
    return x / (1 + np.exp(-x))


def gelu_of(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@check("glu_silu", "glu_gelu")
def glu(launch, kernel):
    rng = seeded(kernel)
    gate, up = normal(rng, 288) * 3, normal(rng, 288)
    gate[:2] = -100, 100
    out, q, groups = np.zeros_like(up), np.zeros(288, np.int8), np.zeros((9, 2), np.uint32)
    launch((2,), gate, up, out, q, groups, np.uint64(288))
    act = silu_of if kernel == "glu_silu" else gelu_of
    yield out, act(np.float64(gate)) * up, 2e-6
    yield q, quantized(out)[0], 0
    yield groups, quantized(out)[1], 0


@check("gather_rows")
def gather_rows(launch, kernel):
    rng = seeded(kernel)
    x, rows = normal(rng, 4, 300), np.array([3, 0, 3], np.uint32)
    out = np.zeros((3, 300), np.float32)
    launch((2, 3), x, rows, out, np.uint32(300))
    yield out, x[rows], 0


# ---------------------------------------------------------------------------------------------------- attention


@check("rope")
def rope(launch, kernel):
    rng = seeded(kernel)
    angles, rows = normal(rng, 3, 40), np.array([2, 0], np.uint32)
    for neox in (0, 1):
        x = normal(rng, 2, 3, 48)
        found = x.copy()
        launch((3, 2), found, angles, rows, np.uint32(3), np.uint32(48), np.uint32(20), np.uint32(neox))
        yield found, rotated(x, angles[rows], neox), 0


@check(*[f"store_kv_{name}" for name in KV_TYPES])
def store_kv(launch, kernel):
    rng, name = seeded(kernel), kernel.removeprefix("store_kv_")
    cache = Cache(rng, name, [66, 3], kv_heads=2, k_dim=40, v_dim=24)
    q, angles, positions = normal(rng, 2, 3, 40), normal(rng, 2, 32), np.array([65, 2], np.uint32)
    k, v = normal(rng, 2, 2, 40), normal(rng, 2, 2, 24)
    expected, pool = cache.pool.copy(), cache.pool.copy()
    for token, position in enumerate(positions):
        cache.store(expected, token, position, rotated(k, angles, 1)[token], v[token])
    found = q.copy()
    launch((3 + 2 * 2, 2), found, k, v, angles, None, pool, cache.table, np.arange(2, dtype=np.uint32), positions,
           *np.uint32([3, 2, 40, 24, 16, 1, cache.table.shape[1]]), np.uint64(cache.offset),
           np.uint64(cache.page_bytes))
    yield found, rotated(q, angles, 1), 0
    yield pool, expected, 0


@check(*[f"attend_decode_{name}_{n}" for name in KV_TYPES for n in (1, 4, 8)],
       *[f"attend_waves_{name}_{n}" for name in ("f16", "q8_0") for n in (64, 128)])
def attend_decode(launch, kernel):
    rng, (on_cores, name, n) = seeded(kernel), re.fullmatch(r"attend_(?:decode|(waves))_(\w+)_(\d+)", kernel).groups()
    heads, kv_heads = 6, 2
    heads_of_block, tolerance = (8, 4e-3) if on_cores else (int(n), 1e-5)
    across = kv_heads * -(-(heads // kv_heads) // heads_of_block)
    for splits, window, softcap, is_fresh in ((1, 70, 0, True), (2, 0, 4, False), (3, 0, 0, True)):
        if splits > 1 and launch.target in WITHOUT_ATOMICS:
            continue
        cache = Cache(rng, name, [140, 3], kv_heads, k_dim=40, v_dim=64)
        # What is fresh is not yet stored; then no two tokens are of one sequence.
        tables, positions = np.array([0, 1], np.uint32), np.array([139, 2], np.uint32)
        q, angles = normal(rng, 2, heads, 40), normal(rng, 2, 32)
        k, v = normal(rng, 2, kv_heads, 40), normal(rng, 2, kv_heads, 64)
        turned, expected = q, cache.pool.copy()
        if is_fresh:
            turned, keys = rotated(q, angles, 1), rotated(k, angles, 1)
            for token, position in enumerate(positions):
                cache.rows[token, int(position)] = cache.store(expected, token, position, keys[token], v[token])
        out, q8 = np.zeros((2, heads, 64), np.float32), np.zeros(2 * heads * 64, np.int8)
        groups, counters = np.zeros((2 * heads * 2, 2), np.uint32), np.zeros(2 * across, np.uint32)
        partials, pool = np.zeros((2, heads, splits, 68), np.float32), cache.pool.copy()
        launch((across, 2, splits), q, *([k, v, angles] if is_fresh else [None] * 3), pool, cache.table, tables,
               positions, out, q8, groups, partials, counters,
               *np.uint32([heads, kv_heads, 40, 64]), np.float32(0.2), np.float32(softcap),
               *np.uint32([16 if is_fresh else 0, 1, window, cache.table.shape[1], splits]), np.uint64(cache.offset),
               np.uint64(cache.page_bytes))
        yield out, cache.attend(turned, tables, positions, 0.2, softcap, window), tolerance
        yield pool, expected, 0
        yield q8, quantized(out.reshape(2 * heads, 64))[0].reshape(-1), 0
        yield groups, quantized(out.reshape(2 * heads, 64))[1].reshape(-1, 2), 0
        yield counters, np.zeros_like(counters), 0


@check(*[f"attend_prompt_{name}_{n}" for name in KV_TYPES for n in (2, 4, 8)],
       *[f"attend_core_{name}_{n}" for name in ("f16", "q8_0") for n in (64, 128, 256)])
def attend_prompt(launch, kernel):
    rng, on_core = seeded(kernel), kernel.startswith("attend_core_")
    name, n = re.fullmatch(r"attend_(?:core|prompt)_(\w+)_(\d+)", kernel).groups()
    heads, kv_heads, v_dim = 3, 1, (1 if on_core else 32) * int(n) - 16
    cache = Cache(rng, name, [70, 4], kv_heads, k_dim=40, v_dim=v_dim)
    tables = np.array([0] * 12 + [1] * 4, np.uint32)
    positions = np.concatenate([np.arange(58, 70), np.arange(4)]).astype(np.uint32)
    tiles = np.array([[0, 10], [10, 2], [12, 4]], np.uint32)
    q, out = normal(rng, 16, heads, 40), np.zeros((16, heads, v_dim), np.float32)
    launch((3, kv_heads), q, cache.pool, cache.table, tables, positions, tiles, out,
           *np.uint32([heads, kv_heads, 40, v_dim]), np.float32(0.2), np.float32(0),
           *np.uint32([40, cache.table.shape[1]]), np.uint64(cache.offset), np.uint64(cache.page_bytes))
    # On matrix cores, queries and weights are f16.
    yield out, cache.attend(q, tables, positions, 0.2, 0, 40), 3e-3 if on_core else 1e-5


# ---------------------------------------------------------------------------------------------------- sampling


@check("sample_penalize", "sample_weigh", "sample_choose")
def sample(launch, kernel):
    case = Sampling(seeded(kernel), 700 if kernel == "sample_choose" else 2200)
    scores, totals = case.scores(), case.totals()
    size, count = np.uint32(case.size), len(case.rows)
    if kernel == "sample_penalize":
        found = np.full_like(scores, np.nan)
        launch((-(-case.size // 1024), count), case.rows, case.edits, case.logits, found, size)
        yield found, scores, 0
    elif kernel == "sample_weigh":
        found = np.zeros_like(totals)
        launch((-(-case.size // 2048), count), case.rows, case.logits, scores, found, size)
        yield found, totals, 0
    else:
        expected = case.choices()
        found = np.zeros_like(expected)
        launch((count,), case.rows, case.logits, scores, totals, found, size)
        yield found["token"], expected["token"], 0
        yield found, expected, 0


# ---------------------------------------------------------------------------------------------------- running


def launcher(code, kernel, target):
    """A function that launches the kernel; an argument that is None is a null pointer."""
    meta = code.kernels[kernel]

    def launch(grid, *args):
        kinds = [argument[".value_kind"] for argument in meta[".args"]]
        for argument, value in zip(meta[".args"], args):
            if value is None:
                argument[".value_kind"] = "by_value"
        args = [np.uint64(0) if value is None else value for value in args]
        threads = meta[".max_flat_workgroup_size"]
        code.launch(kernel, grid=(tuple(grid) + (1, 1))[:3], block=(threads, 1, 1), args=args)
        for argument, kind in zip(meta[".args"], kinds):
            argument[".value_kind"] = kind

    launch.target = target
    return launch


def error_of(found, expected):
    """The largest error, relative to the largest number expected; infinite where one is NaN and the other is not."""
    if found.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else np.inf
    found, expected = np.float64(found), np.float64(expected)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(all="ignore"):
        difference = np.where(same, 0, np.abs(found - expected))
        finite = np.abs(expected[np.isfinite(expected)])
    worst = np.max(difference, initial=0)
    return np.inf if np.isnan(worst) else worst / max(np.max(finite, initial=0), 1e-30)


def run(code, kernel, target):
    """The largest error of a kernel, and whether all are within what is allowed."""
    errors = [(error_of(found, expected), allowed)
              for found, expected, allowed in CHECKS[kernel](launcher(code, kernel, target), kernel)]
    return max(e for e, _ in errors), all(e <= allowed for e, allowed in errors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--kernels", default="")
    parser.add_argument("--table")
    options = parser.parse_args()
    for variable in ("RUN_HSACO", "TINYGRAD"):
        if variable not in os.environ:
            sys.exit(f"set {variable}; see --help")
    # tinygrad compiles with it.
    os.environ.setdefault("CC", kernels.tool("CLANG", "clang"))
    spec = importlib.util.spec_from_file_location("run_hsaco", os.environ["RUN_HSACO"])
    run_hsaco = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run_hsaco)

    results, failed, unchecked = {}, [], set()
    objects = pathlib.Path(options.objects or tempfile.mkdtemp())
    targets = options.targets.split(",")
    for target in targets:
        for path in kernels.objects(objects, target):
            code = run_hsaco.CodeObject(str(path))
            unchecked |= set(code.kernels) - set(CHECKS)
            for kernel in filter(lambda name: name in CHECKS and re.search(options.kernels, name), code.kernels):
                start = time.time()
                if (kernel, target) in UNCHECKED:
                    results.setdefault(kernel, {})[target] = UNCHECKED[kernel, target]
                    continue
                try:
                    error, good = run(code, kernel, target)
                    text = "exact" if error == 0 else f"{error:.1e}"
                    if not good:
                        failed.append(f"{kernel} on {target}")
                        text += " WRONG"
                except (NotImplementedError, RuntimeError, ValueError, KeyError, AssertionError) as problem:
                    text = f"not emulated ({type(problem).__name__}: {str(problem).splitlines()[0][:60]})"
                results.setdefault(kernel, {})[target] = text
                print(f"{kernel:28} {target:10} {text} ({time.time() - start:.1f} s)", flush=True)
    if options.table:
        lines = [f"| kernel | {' | '.join(targets)} |", f"|---|{'---|' * len(targets)}"]
        for kernel, row in sorted(results.items()):
            lines.append(f"| {kernel} | {' | '.join(row.get(t, '') for t in targets)} |")
        pathlib.Path(options.table).write_text("\n".join(lines) + "\n")
    if unchecked:
        failed.append(f"kernels without a check: {', '.join(sorted(unchecked))}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
