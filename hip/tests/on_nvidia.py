#!/usr/bin/env python3
"""Runs every kernel's PTX on an NVIDIA GPU, with the checks of emulate.py, and times products of matrices.

    on_nvidia.py [--objects DIR] [--kernels REGEX] [--table FILE] [--speed]

Needs cupy, and the PTX that `cargo kernels` writes (it is built where DIR has none). Exits with 1 where a result is wrong.
"""

import argparse
import pathlib
import re
import sys
import tempfile

import cupy
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import emulate  # noqa: E402
from emulate import CHECKS, error_of, kernels  # noqa: E402
from references import FORMATS, matrix, quantized  # noqa: E402

TARGET = "sm_90"


def launcher(function):
    """A function that launches the kernel as emulate.py's does: arrays are copied there and back."""

    def launch(grid, *args):
        on_device = [cupy.asarray(a.view(np.uint8).reshape(-1)) if isinstance(a, np.ndarray) else a for a in args]
        sent = [np.uint64(0) if a is None else a for a in on_device]
        function((tuple(grid) + (1, 1))[:3], (function.max_threads_per_block,), tuple(sent))
        cupy.cuda.get_current_stream().synchronize()
        for host, device in zip(args, on_device):
            if isinstance(host, np.ndarray):
                host.view(np.uint8).reshape(-1)[:] = cupy.asnumpy(device)

    launch.target = TARGET
    return launch


def speed(function, name):
    """Prints how fast a product with one column reads its weights, of which there are more than the caches hold."""
    rng = np.random.default_rng(1)
    planes, weights = matrix(rng, name, 8, 4096)
    per_row, rows, columns, copies = planes.nbytes // 8, 14336, 4096, 8
    w = [cupy.zeros(per_row * rows + 4096, cupy.uint8) for _ in range(copies)]
    q, groups = (cupy.asarray(a) for a in quantized(rng.standard_normal((1, columns)).astype(np.float32)))
    out = cupy.zeros(rows, cupy.float32)
    start, end, times = cupy.cuda.Event(), cupy.cuda.Event(), []
    for _ in range(20):
        start.record()
        for weights in w:
            function((rows // 4,), (function.max_threads_per_block,),
                     (weights, q, groups, out, np.uint64(0), np.uint64(0), np.uint32(rows), np.uint32(columns), np.uint32(1),
                      np.uint64(0), np.float32(0)))
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) / copies * 1e-3)
    seconds = float(np.median(times))
    print(f"matvec_{name}_1 {rows} x {columns}: {seconds * 1e6:.1f} us, {per_row * rows / seconds / 1e9:.0f} GB/s")


# Rows and columns of the matrices of an 8B model: queries, keys and values; output; gate and up; down.
SHAPES = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]


def speed_on_matrix_cores(function, name, n):
    """Prints how fast products with n columns (512 where n is the largest tile) are."""
    n, block_rows, count = int(n), emulate.CORE_TILES[int(n)], 512 if int(n) == 128 else int(n)
    planes, _ = matrix(np.random.default_rng(1), name, 8, 4096)
    for rows, columns in SHAPES:
        size = planes.nbytes * rows * columns // (8 * 4096)
        # Enough copies that the caches do not hold them all.
        copies = max(1, -(-200_000_000 // size))
        w = [cupy.random.randint(0, 256, size + 4096, dtype=cupy.uint8) for _ in range(copies)]
        x = cupy.random.standard_normal((-(-count // 16) * 16, columns), dtype=cupy.float32).astype(cupy.float16)
        scales = cupy.ones(count, cupy.float32)
        none = np.uint64(0)
        out = cupy.zeros((count, rows), cupy.float32)
        grid = (-(-rows // block_rows), -(-count // n))
        start, end, times = cupy.cuda.Event(), cupy.cuda.Event(), []
        for _ in range(12):
            start.record()
            for weights in w:
                function(grid, (function.max_threads_per_block,),
                         (weights, none, none, x, scales, out, *[none] * 5, np.uint32(rows), np.uint32(0), np.uint32(0),
                          np.uint32(columns), np.uint32(count), np.uint32(1), none, none))
            end.record()
            end.synchronize()
            times.append(cupy.cuda.get_elapsed_time(start, end) / copies * 1e-3)
        seconds = float(np.median(times[2:]))
        print(f"matmul_core_{name}_{n} {rows} x {columns}, {count} columns: {seconds * 1e6:.1f} us, "
              f"{2e-12 * rows * columns * count / seconds:.1f} TFLOP/s, {size / seconds / 1e9:.0f} GB/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects")
    parser.add_argument("--kernels", default="")
    parser.add_argument("--table")
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    objects = pathlib.Path(options.objects or tempfile.mkdtemp())
    card = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    results, failed = {}, []
    for path in kernels.objects(objects, TARGET):
        text = path.read_text()
        code = cupy.RawModule(path=str(path))
        for kernel in re.findall(r"\.visible \.entry (\w+)\(", text):
            if kernel not in CHECKS or not re.search(options.kernels, kernel):
                continue
            function = code.get_function(kernel)
            errors = [(error_of(found, expected), allowed)
                      for found, expected, allowed in CHECKS[kernel](launcher(function), kernel)]
            worst = max(error for error, _ in errors)
            results[kernel] = "exact" if worst == 0 else f"{worst:.1e}"
            if any(error > allowed for error, allowed in errors):
                failed.append(kernel)
                results[kernel] += " WRONG"
            print(f"{kernel:28} {results[kernel]}", flush=True)
            name = kernel.removeprefix("matvec_").removesuffix("_1")
            if options.speed and kernel == f"matvec_{name}_1" and name in FORMATS and name not in emulate.FLOATS:
                speed(function, name)
            core = re.fullmatch(r"matmul_core_(\w+)_(\d+)", kernel)
            if options.speed and core and core[1] in ("q4_k", "q4_0", "q6_k"):
                speed_on_matrix_cores(function, *core.groups())
    print(f"{len(results)} kernels on {card}, {len(failed)} wrong")
    if options.table:
        lines = [f"| kernel | {card} |", "|---|---|"] + [f"| {k} | {v} |" for k, v in sorted(results.items())]
        pathlib.Path(options.table).write_text("\n".join(lines) + "\n")
    if failed:
        sys.exit(f"wrong: {', '.join(failed)}")


if __name__ == "__main__":
    main()
