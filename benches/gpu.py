#!/usr/bin/env python3
"""Times models on a GPU side by side with llama.cpp, on the same files, in one run, and prints ratios.

    gpu.py --llama-bench FILE [--examples DIR] [--device hip] [--rounds N] [--deep] MODEL...

FILE is a llama-bench that was built for the GPU. Each round runs both programs, one after the other, on the same test
with one repetition each after warming up; the table has the medians and the ranges of the rounds. The tests are
prompts of 512 and 2048 tokens, 128 tokens of generation and, with --deep, 64 tokens behind 8192 and 32000 others.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TESTS = [("pp512", 512, 0, 0), ("pp2048", 2048, 0, 0), ("tg128", 0, 128, 0)]
DEEP = [("tg64 @ 8192", 0, 64, 8192), ("tg64 @ 32000", 0, 64, 32000)]


def run(command, environment=None):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr[-2000:]}")
    return result.stdout


def ours(options, model, prompt, generated, depth):
    out = run([pathlib.Path(options.examples) / "bench", "--model", model, "--device", options.device, "--quiet",
               "-p", prompt, "-n", generated, "-d", depth, "-r", 2, "--json"])
    return json.loads(out.splitlines()[-1])["tokens_per_second"]["median"]


def theirs(options, model, prompt, generated, depth):
    folder = str(pathlib.Path(options.llama_bench).resolve().parent)
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    out = run([options.llama_bench, "-m", model, "-ngl", 99, "-fa", 1, "-p", prompt, "-n", generated, "-d", depth,
               "-r", 2, "-o", "json"], environment)
    return statistics.median(json.loads(out)[0]["samples_ts"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--examples", default=ROOT / "target" / "release" / "examples")
    parser.add_argument("--device", default="hip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deep", action="store_true")
    parser.add_argument("models", nargs="+")
    options = parser.parse_args()
    print("| model | test | wavelm | llama.cpp | ratio |\n|---|---|---|---|---|", flush=True)
    for model in options.models:
        for name, *test in TESTS + (DEEP if options.deep else []):
            rounds = [(ours(options, model, *test), theirs(options, model, *test)) for _ in range(options.rounds)]
            shown = [f"{statistics.median(side):,.0f} ({min(side):,.0f}-{max(side):,.0f})" for side in zip(*rounds)]
            ratio = statistics.median(a / b for a, b in rounds)
            print(f"| {pathlib.Path(model).stem} | {name} | {shown[0]} | {shown[1]} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
