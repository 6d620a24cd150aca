"""The GPU kernels for the programs here: `cargo kernels` builds or unpacks them, and says what they use."""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIELDS = ["vgprs", "agprs", "sgprs", "spills", "scratch", "lds", "wave"]


def tool(variable, name):
    """A program of LLVM: the one that the variable names, or the newest that is installed."""
    named = os.environ.get(variable)
    for candidate in [named] if named else [*(f"{name}-{v}" for v in range(30, 16, -1)), name]:
        if shutil.which(candidate):
            return candidate
    sys.exit(f"{named or name} is not installed: install clang 17 or later with lld, or set {variable}")


def compiler():
    """The version of the compiler, as hip/prebuilt/manifest has it."""
    version = subprocess.run([tool("CLANG", "clang"), "--version"], capture_output=True, text=True, check=True).stdout
    return next(line.strip() for line in version.splitlines() if "clang version " in line)


def run(*arguments):
    """Runs `cargo kernels`, and returns what it prints."""
    ran = subprocess.run(["cargo", "kernels", *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        sys.exit(f"cargo kernels {' '.join(map(str, arguments))} failed")
    return ran.stdout


def used(*arguments):
    """What kernels use, by kernel and target, from the table that a run prints."""
    found = {}
    for line in run(*arguments).splitlines():
        kernel, target, *numbers = line.split() or ["", ""]
        if len(numbers) == len(FIELDS) and all(n.isdigit() for n in numbers):
            found[kernel, target] = dict(zip(FIELDS, map(int, numbers)))
    return found


def objects(folder, target):
    """The objects for a target in a folder, in the order of families; all are built where there is none."""
    found = sorted(pathlib.Path(folder).glob(f"*.{target}.*"))
    if not found:
        run("--out", pathlib.Path(folder).resolve(), "--targets", target)
        found = sorted(pathlib.Path(folder).glob(f"*.{target}.*"))
    return found
