#!/usr/bin/env python3
"""Compares whole models on a GPU with the CPU: the same greedy texts, and logits.

    models.py --examples DIR [--device hip] [--tokens N] [--texts] [--reference] MODEL...

DIR has the built examples (target/release/examples). --texts continues prompts by 64 tokens on both and compares the
texts, which has a meaning for real models only: random weights leave near ties. Logits are compared over N tokens of
this repository's documents, each model's own tokens: the largest difference relative to the largest logit, and how
often the best token is the same. With --reference, both are also computed in 32-bit floats on both devices: what
differs there is a fault, what differs only without it is how activations are rounded.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROMPTS = ["The capital of France is", "Water boils at", "Once upon a time, there was a little",
           "The first president of the United States was", "def fibonacci(n):", "List the days of the week: Monday,"]


def example(options, name, *arguments, text=""):
    command = [str(pathlib.Path(options.examples) / name), *map(str, arguments)]
    result = subprocess.run(command, input=text.encode(), capture_output=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)[:300]}\n{result.stderr.decode()}")
    return result.stdout


def same_texts(options, model, *arguments):
    same = 0
    for prompt in PROMPTS:
        texts = [example(options, "generate", "--model", model, "--device", device, "--prompt", prompt, "-n", 64,
                         "--temperature", 0, "--quiet", *arguments).decode() for device in ("cpu", options.device)]
        same += texts[0] == texts[1]
        if texts[0] != texts[1]:
            at = next((i for i, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts)))
            print(f"  {prompt!r} differs from character {at} on: {texts[0][at:at + 40]!r}, {texts[1][at:at + 40]!r}")
    how = " ".join(["", *arguments])
    print(f"{model}{how}: {same} of {len(PROMPTS)} greedy texts of 64 tokens are the same", flush=True)


def logits(options, model, tokens, *arguments):
    with tempfile.NamedTemporaryFile() as out:
        example(options, "logits", "--model", model, "--tokens", ",".join(map(str, tokens)), "--out", out.name,
                "--quiet", *arguments)
        return np.fromfile(out.name, "<f4").reshape(len(tokens), -1)


def compare(what, expected, found):
    difference = np.abs(expected - found).max() / np.abs(expected).max()
    top = np.mean(expected.argmax(axis=1) == found.argmax(axis=1))
    print(f"  {what}: {difference:.1e} of the largest logit, the best token is the same for {top:.1%}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", default=ROOT / "target" / "release" / "examples")
    parser.add_argument("--device", default="hip")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--texts", action="store_true")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("models", nargs="+")
    options = parser.parse_args()
    text = "".join((ROOT / "docs" / name).read_text() for name in ("architecture.md", "gpu-kernels.md"))
    for model in options.models:
        if options.texts:
            same_texts(options, model)
            if options.reference:
                same_texts(options, model, "--reference")
        tokens = json.loads(example(options, "tokenize", "--model", model, "--json", "--no-special", text=text[:20000]))
        tokens = tokens[:options.tokens]
        print(f"{model}: {len(tokens)} tokens", flush=True)
        on_gpu = logits(options, model, tokens, "--device", options.device)
        on_cpu = logits(options, model, tokens, "--device", "cpu")
        compare("GPU and CPU", on_cpu, on_gpu)
        if options.reference:
            exact = logits(options, model, tokens, "--device", "cpu", "--reference")
            compare("GPU and the CPU in 32-bit floats", exact, on_gpu)
            compare("CPU and the CPU in 32-bit floats", exact, on_cpu)
            compare("both in 32-bit floats", exact, logits(options, model, tokens, "--device", options.device, "--reference"))


if __name__ == "__main__":
    main()
