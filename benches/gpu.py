#!/usr/bin/env python3
"""Times models on a GPU side by side with llama.cpp, on the same files, in one run, and prints ratios.

    gpu.py --llama-bench FILE [--examples DIR] [--device hip] [--rounds N] [--deep] [--together] MODEL...

FILE is a llama-bench that was built for the GPU. Each round runs both programs, one after the other, on the same test
with one repetition each after warming up; the table has the medians and the ranges of the rounds. The tests are
prompts of 512 and 2048 tokens, 128 tokens of generation and, with --deep, 64 tokens behind 8192 and 32000 others, of
the first model. With --together that model also generates for 16 and 64 sequences at once, and draws tokens (top-k 40,
top-p 0.9, temperature 0.8) instead of taking the best ones: these rows compare wavelm with itself.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TESTS = [("pp512", 512, 0, 0), ("pp2048", 2048, 0, 0), ("tg128", 0, 128, 0)]
DEEP = [("tg64 @ 8192", 0, 64, 8192), ("tg64 @ 32000", 0, 64, 32000)]


def run(command, environment=None, stream="stdout"):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr[-2000:]}")
    return getattr(result, stream)


def ours(options, model, prompt, generated, depth):
    out = run([options.examples / "bench", "--model", model, "--device", options.device, "--quiet",
               "-p", prompt, "-n", generated, "-d", depth, "-r", 2, "--json"])
    return json.loads(out.splitlines()[-1])["tokens_per_second"]["median"]


def theirs(options, model, prompt, generated, depth):
    folder = str(pathlib.Path(options.llama_bench).resolve().parent)
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    out = run([options.llama_bench, "-m", model, "-ngl", 99, "-fa", 1, "-p", prompt, "-n", generated, "-d", depth,
               "-r", 2, "-o", "json"], environment)
    return statistics.median(json.loads(out)[0]["samples_ts"])


def sequences(options, model, counts):
    """Tokens per second of all sequences, for each number of them."""
    out = run([options.examples / "bench", "--model", model, "--device", options.device, "--quiet",
               "-p", 0, "-n", 64, "-s", ",".join(map(str, counts)), "-r", 2, "--json"])
    return [json.loads(line)["tokens_per_second"]["median"] for line in out.splitlines()]


def generation(options, model, *sampler):
    """Tokens per second of the example `generate`."""
    err = run([options.examples / "generate", "--model", model, "--device", options.device,
               "--prompt", "Once", "-n", 256, *sampler], stream="stderr")
    return float(re.search(r"generated: .* tokens, ([0-9.]+) tokens/s", err)[1])


def shown(values, form=",.0f"):
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def together(options, model):
    """Prints what sequences gain that decode together, and what drawing costs."""
    counts = [1, 16, 64]
    rounds = [sequences(options, model, counts) for _ in range(options.rounds)]
    for i, count in enumerate(counts[1:], 1):
        gains = [r[i] / r[0] for r in rounds]
        print(f"| {pathlib.Path(model).stem} | tg64 x {count} | {shown([r[i] for r in rounds])} "
              f"| one: {shown([r[0] for r in rounds])} | {shown(gains, '.1f')} |", flush=True)
    draw = ["--temperature", 0.8, "--top-k", 40, "--top-p", 0.9, "--seed", 1]
    rounds = [(generation(options, model, "--temperature", 0), generation(options, model, *draw))
              for _ in range(options.rounds)]
    costs = [(best / drawn - 1) * 100 for best, drawn in rounds]
    print(f"| {pathlib.Path(model).stem} | drawn tokens | {shown([r[1] for r in rounds])} "
          f"| best tokens: {shown([r[0] for r in rounds])} | {shown(costs, '+.1f')} % of a step |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--examples", type=lambda path: pathlib.Path(path).resolve(),
                        default=ROOT / "target" / "release" / "examples")
    parser.add_argument("--device", default="hip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deep", action="store_true")
    parser.add_argument("--together", action="store_true")
    parser.add_argument("models", nargs="+")
    options = parser.parse_args()
    print("| model | test | wavelm | llama.cpp | ratio |\n|---|---|---|---|---|", flush=True)
    for model in options.models:
        is_first = model == options.models[0]
        for name, *test in TESTS + (DEEP if options.deep and is_first else []):
            rounds = [(ours(options, model, *test), theirs(options, model, *test)) for _ in range(options.rounds)]
            ratio = statistics.median(a / b for a, b in rounds)
            sides = " | ".join(shown(side) for side in zip(*rounds))
            print(f"| {pathlib.Path(model).stem} | {name} | {sides} | {ratio:.2f} |", flush=True)
        if options.together and is_first:
            together(options, model)


if __name__ == "__main__":
    main()
