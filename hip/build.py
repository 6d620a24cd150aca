#!/usr/bin/env python3
"""Builds the GPU kernels with clang alone (17 or later, with lld): no ROCm or CUDA is needed.

    build.py [--out DIR] [--targets gfx1100,sm_80,...] [--modules matvec,...]

Writes DIR/<module>.<target>.hsaco for AMD targets and .ptx for NVIDIA's, and prints what each AMD kernel uses. Fails
where a kernel spills registers, needs scratch memory, or uses more than the budgets below. CLANG names the compiler,
LLVM_READELF the reader of the objects; without them the newest installed ones are taken.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

SOURCES = pathlib.Path(__file__).resolve().parent
AMD = ["gfx906", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1101", "gfx1151", "gfx1200", "gfx1201"]
# One object for a family of GPUs; they need code objects of version 6.
AMD_GENERIC = ["gfx9-generic", "gfx10-1-generic", "gfx10-3-generic", "gfx11-generic", "gfx12-generic"]
NVIDIA = ["sm_80"]
TARGETS = AMD + AMD_GENERIC + NVIDIA
# What has no matrix cores; the backend's table (`has_matrix_cores` in src/backend/hip/objects.rs) says the same.
WITHOUT_MATRIX_CORES = ["gfx906", "gfx1030", "gfx9-generic", "gfx10-1-generic", "gfx10-3-generic"]

# With these, at least four waves fit a compute unit of every target, and a block fits NVIDIA's static shared memory.
MAX_VGPRS = 256
MAX_LDS = 48 * 1024


def modules():
    return sorted(f.stem for f in SOURCES.glob("*.hip"))


def is_for(module, target):
    """Whether a target has this module."""
    return "_core" not in module or target not in WITHOUT_MATRIX_CORES


def tool(variable, name):
    named = os.environ.get(variable)
    versions = [f"{name}-{v}" for v in range(30, 16, -1)]
    for candidate in [named] if named else [*versions, name]:
        if shutil.which(candidate):
            return candidate
    sys.exit(f"{named or name} is not installed: install clang 17 or later with lld, or set {variable}")


def flags(target):
    """The flags for a target, which is all that an object depends on beside the sources and the compiler."""
    common = ["--cuda-device-only", "-O3", "-ffp-contract=off", "-std=c++17", "-Wall", "-Wextra"]
    # Clang 19 warns about code objects of version 6.
    if not target.endswith("-generic"):
        common.append("-Werror")
    if target.startswith("sm_"):
        ptx = ["-Xclang", "-target-feature", "-Xclang", "+ptx70"]
        return ["-x", "cuda", f"--cuda-gpu-arch={target}", "-nocudainc", "-nocudalib", "-S", *ptx, *common]
    version = 6 if target.endswith("-generic") else 5
    hip = ["-x", "hip", f"--offload-arch={target}", "--no-gpu-bundle-output", "-nogpulib", "-nogpuinc"]
    # The emulator that the objects are proven with ignores the signs of sub-dword operands, which only gfx9 has.
    sdwa = ["-mllvm", "-amdgpu-sdwa-peephole=0"] if target.startswith("gfx9") else []
    return [*hip, f"-mcode-object-version={version}", *sdwa, *common]


def build(module, target, out):
    """Builds one object and returns its path."""
    path = pathlib.Path(out) / f"{module}.{target}.{'ptx' if target.startswith('sm_') else 'hsaco'}"
    command = [tool("CLANG", "clang"), *flags(target), str(SOURCES / f"{module}.hip"), "-o", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stderr}")
    return path


FIELDS = ["vgpr_count", "agpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count",
          "private_segment_fixed_size", "group_segment_fixed_size", "wavefront_size"]


def resources(path):
    """What each kernel of an AMD object uses, by name, from the object's notes."""
    reader = tool("LLVM_READELF", "llvm-readelf")
    notes = subprocess.run([reader, "--notes", str(path)], capture_output=True, text=True, check=True).stdout
    kernels = {}
    # Each kernel is an entry of the list, whose own fields are indented by four.
    for entry in re.split(r"^  - ", notes.split("amdhsa.kernels:", 1)[1], flags=re.M)[1:]:
        values = dict(re.findall(r"^    \.(\w+): +(\S+)$", "    " + entry, flags=re.M))
        if "name" in values:
            kernels[values["name"]] = {field: int(values.get(field, 0)) for field in FIELDS}
    return kernels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=SOURCES.parent / "target" / "hip")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--modules", default=",".join(modules()))
    options = parser.parse_args()
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    failures = []
    print(f"{'kernel':32} {'target':16} vgprs agprs sgprs spills scratch    lds wave")
    for target in options.targets.split(","):
        for module in options.modules.split(","):
            if not is_for(module, target):
                continue
            path = build(module, target, out)
            if path.suffix == ".ptx":
                print(f"{module:32} {target:16} {path.stat().st_size} bytes of PTX")
                continue
            for name, used in sorted(resources(path).items()):
                vgprs, agprs, sgprs, vgpr_spills, sgpr_spills, scratch, lds, wave = (used[f] for f in FIELDS)
                spills = vgpr_spills + sgpr_spills
                print(f"{name:32} {target:16} {vgprs:5} {agprs:5} {sgprs:5} {spills:6} {scratch:7} {lds:6} {wave:4}")
                if spills or scratch or vgprs > MAX_VGPRS or lds > MAX_LDS:
                    failures.append(f"{name} for {target}")
    if failures:
        sys.exit(f"spills, scratch memory or beyond the budget: {', '.join(failures)}")


if __name__ == "__main__":
    main()
