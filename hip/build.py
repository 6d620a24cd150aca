#!/usr/bin/env python3
"""Builds the GPU kernels with clang alone (17 or later, with lld): no ROCm or CUDA is needed.

    build.py [--out DIR] [--targets gfx1100,sm_80,...] [--modules matvec,...] [--prebuilt | --check]

Writes DIR/<module>.<target>.hsaco for AMD targets and .ptx for NVIDIA's, and prints what each AMD kernel uses. Fails
where a kernel spills registers, needs scratch memory, or uses more than the budgets below. CLANG names the compiler,
LLVM_READELF the reader of the objects; without them the newest installed ones are taken.

With --prebuilt it also writes prebuilt/: what build.rs embeds into the library. With --check it compares what it built
with prebuilt/, byte for byte where the compiler is the one that prebuilt/ was made with.
"""

import argparse
import concurrent.futures
import functools
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import sys

SOURCES = pathlib.Path(__file__).resolve().parent
PREBUILT = SOURCES / "prebuilt"

# With these, at least four waves fit a compute unit of every target, and a block fits NVIDIA's static shared memory.
MAX_VGPRS = 256
MAX_LDS = 48 * 1024


def read_targets():
    """The archive and the flags of each target, from the file "targets"."""
    named, found = {}, {}
    for line in (SOURCES / "targets").read_text().splitlines():
        name, *words = line.split() or ["#"]
        if name.startswith("#"):
            continue
        archive = None if name.startswith("@") else words.pop(0)
        expanded = [flag for word in words for flag in (named[word] if word.startswith("@") else [word])]
        if archive:
            found[name] = archive, [flag.replace("TARGET", name) for flag in expanded]
        else:
            named[name] = expanded
    return found


TARGETS = read_targets()
NVIDIA = [target for target in TARGETS if target.startswith("sm_")]


def modules():
    return sorted(f.stem for f in SOURCES.glob("*.hip"))


def tool(variable, name):
    named = os.environ.get(variable)
    versions = [f"{name}-{v}" for v in range(30, 16, -1)]
    for candidate in [named] if named else [*versions, name]:
        if shutil.which(candidate):
            return candidate
    sys.exit(f"{named or name} is not installed: install clang 17 or later with lld, or set {variable}")


@functools.cache
def compiler():
    """The version of the compiler, by which one knows whether it makes the same objects."""
    version = subprocess.run([tool("CLANG", "clang"), "--version"], capture_output=True, text=True, check=True).stdout
    return version.splitlines()[0].strip()


def extension(target):
    return "ptx" if target in NVIDIA else "hsaco"


def build(module, target, out):
    """Builds one object and returns its path."""
    path = pathlib.Path(out) / f"{module}.{target}.{extension(target)}"
    # Clang 19 warns about code objects of version 6.
    warnings = ["-Wall", "-Wextra", "-Wno-unknown-cuda-version", *([] if target.endswith("-generic") else ["-Werror"])]
    command = [tool("CLANG", "clang"), *TARGETS[target][1], *warnings, str(SOURCES / f"{module}.hip"), "-o", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return path


FIELDS = ["vgpr_count", "agpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count",
          "private_segment_fixed_size", "group_segment_fixed_size", "wavefront_size"]


def resources(path):
    """What each kernel of an AMD object uses, by name, from the object's notes."""
    reader = tool("LLVM_READELF", "llvm-readelf")
    notes = subprocess.run([reader, "--notes", str(path)], capture_output=True, text=True, check=True).stdout
    kernels = {}
    # Each kernel is an entry of the list, whose own fields are indented by four.
    # Those for matrix cores are empty where a target has none.
    for entry in re.split(r"^  - ", notes.partition("amdhsa.kernels:")[2], flags=re.M)[1:]:
        values = dict(re.findall(r"^    \.(\w+): +(\S+)$", "    " + entry, flags=re.M))
        if "name" in values:
            kernels[values["name"]] = {field: int(values.get(field, 0)) for field in FIELDS}
    return kernels


def fnv(data, value=0xCBF29CE484222325):
    """FNV-1a with 64 bits, as build.rs and the library compute it."""
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


@functools.cache
def source_hash(module):
    headers = sorted(SOURCES.glob("*.h"), key=lambda path: path.name)
    return functools.reduce(lambda value, path: fnv(path.read_bytes(), value), [SOURCES / f"{module}.hip", *headers],
                            fnv(b""))


def recipe_hash(module, target):
    """What an object was built from: the module's source, all headers, the compiler and the flags."""
    return fnv(" ".join([compiler(), *TARGETS[target][1]]).encode(), source_hash(module))


def pack(objects):
    """An archive, as the library unpacks it. Machine code is words of four bytes, PTX is text."""
    data = b"".join(path.read_bytes() for path in objects)
    bits = {"lc": 3, "lp": 0, "pb": 0} if objects[0].suffix == ".ptx" else {"lc": 1, "lp": 2, "pb": 2}
    size = max(1 << 16, 1 << (len(data) - 1).bit_length())
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size, **bits}]
    return lzma.compress(data, format=lzma.FORMAT_ALONE, filters=filters)


def write_prebuilt(out):
    """Fills prebuilt/ with archives of objects and a manifest, as build.rs reads it."""
    shutil.rmtree(PREBUILT, ignore_errors=True)
    PREBUILT.mkdir()
    lines = [f"compiler {compiler()}"]
    for module in modules():
        for archive in dict.fromkeys(archive for archive, _ in TARGETS.values()):
            targets = [target for target in TARGETS if TARGETS[target][0] == archive]
            objects = [out / f"{module}.{target}.{extension(target)}" for target in targets]
            file = PREBUILT / f"{module}.{archive}.lzma"
            file.write_bytes(pack(objects))
            start = 0
            for target, path in zip(targets, objects):
                code = path.read_bytes()
                lines.append(f"{module} {target} {recipe_hash(module, target):016x} {file.name} {start} {len(code)} "
                             f"{fnv(code):016x}")
                start += len(code)
    (PREBUILT / "manifest").write_text("\n".join(lines) + "\n", newline="\n")
    sizes = [f.stat().st_size for f in PREBUILT.glob("*.lzma")]
    raw = sum((out / f"{m}.{t}.{extension(t)}").stat().st_size for m in modules() for t in TARGETS)
    print(f"prebuilt/: {raw} bytes of code in {sum(sizes)} bytes of {len(sizes)} archives")


def check_prebuilt(out):
    """What differs between the objects in `out` and prebuilt/."""
    try:
        first, *lines = (PREBUILT / "manifest").read_text().splitlines()
    except FileNotFoundError:
        return ["there is no prebuilt/manifest: run hip/build.py --prebuilt"]
    made_with = first.removeprefix("compiler ")
    if made_with != compiler():
        print(f"prebuilt/ was made with {made_with}, not {compiler()}: its bytes are not compared")
        return []
    archives = functools.cache(lambda file: lzma.decompress((PREBUILT / file).read_bytes()))
    wrong, seen = [], set()
    for module, target, recipe, file, start, length, _ in (line.split() for line in lines):
        seen.add((module, target))
        code = archives(file)[int(start):int(start) + int(length)]
        path = out / f"{module}.{target}.{extension(target)}"
        if int(recipe, 16) != recipe_hash(module, target):
            wrong.append(f"prebuilt/ has {module} for {target} from other sources or flags")
        elif code != path.read_bytes():
            wrong.append(f"prebuilt/ has other bytes of {module} for {target}")
    wrong += [f"prebuilt/ lacks {m} for {t}" for m in modules() for t in TARGETS if (m, t) not in seen]
    if not wrong:
        print(f"prebuilt/: all {len(seen)} objects are, byte for byte, what {compiler()} makes")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=SOURCES.parent / "target" / "hip")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--modules", default=",".join(modules()))
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument("--prebuilt", action="store_true", help="write prebuilt/, which takes all targets and modules")
    whole.add_argument("--check", action="store_true", help="compare with prebuilt/, with all targets and modules")
    options = parser.parse_args()
    targets, names = options.targets.split(","), options.modules.split(",")
    if (options.prebuilt or options.check) and (set(targets) != set(TARGETS) or set(names) != set(modules())):
        parser.error("prebuilt/ has all targets and modules")
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    failures = []
    print(f"{compiler()}\n{'kernel':32} {'target':16} vgprs agprs sgprs spills scratch    lds wave")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(target, module, pool.submit(build, module, target, out)) for target in targets for module in names]
        for target, module, job in jobs:
            try:
                path = job.result()
            except RuntimeError as error:
                pool.shutdown(cancel_futures=True)
                sys.exit(str(error))
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
    if options.prebuilt:
        write_prebuilt(out)
    if options.check and (wrong := check_prebuilt(out)):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
