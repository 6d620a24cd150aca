#!/usr/bin/env python3
"""Checks what build.rs embeds and what it refuses, in a copy of the repository's hip/ folder.

    build_script.py [--prebuilt DIR]

DIR is a filled prebuilt/ folder of the present sources, the repository's by default. Needs rustc; clang and lld for the
kernels that it builds.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import kernels  # noqa: E402
from kernels import ROOT  # noqa: E402


class Copy:
    """A copy of hip/ and the compiled build script."""

    def __init__(self, folder, prebuilt):
        self.folder = pathlib.Path(folder)
        self.prebuilt = prebuilt
        self.script = self.folder / "build_script"
        subprocess.run(["rustc", "--edition=2024", str(ROOT / "build.rs"), "-o", str(self.script)], check=True)
        self.fill()

    def fill(self):
        """Makes the copy as the repository is, with prebuilt/."""
        shutil.rmtree(self.folder / "hip", ignore_errors=True)
        others = shutil.ignore_patterns("builder", "prebuilt", "sim", "tests")
        shutil.copytree(ROOT / "hip", self.folder / "hip", ignore=others)
        shutil.copytree(self.prebuilt, self.folder / "hip/prebuilt")

    def run(self, **variables):
        """Runs the script; its exit status, its output and the table that it wrote."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WAVELM_")}
        environment = {**kept, "CARGO_MANIFEST_DIR": str(self.folder), "OUT_DIR": str(out), "NUM_JOBS": "2", **variables}
        ran = subprocess.run([str(self.script)], env=environment, capture_output=True, text=True)
        table = out / "hip_objects.rs"
        return ran.returncode, ran.stdout + ran.stderr, table.read_text() if table.exists() else ""


def expect(name, condition, told):
    print(f"{'ok' if condition else 'WRONG'}: {name}")
    if not condition:
        sys.exit(told)


def refuses(copy, name, *words, **variables):
    """Checks that the build stops with a message that has these words."""
    status, told, table = copy.run(**variables)
    expect(name, status != 0 and "cargo::error=" in told and all(w in told for w in words) and not table, told + table)
    copy.fill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prebuilt", default=ROOT / "hip" / "prebuilt")
    prebuilt = pathlib.Path(parser.parse_args().prebuilt)
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(folder, prebuilt)
        manifest = copy.folder / "hip/prebuilt/manifest"
        objects = len(manifest.read_text().splitlines()) - 1

        # No compiler may be needed, so none is to be found.
        nothing = {"PATH": "", "CLANG": "", "ROCM_PATH": "/nonexistent"}
        status, told, table = copy.run(**nothing)
        expect("all prebuilt objects are embedded", status == 0 and table.count("Embedded {") == objects > 0, told)
        status, told, table = copy.run(WAVELM_BUILD_KERNELS="none", **nothing)
        expect("none are embedded where none are wanted", status == 0 and table.count("Embedded {") == 0, told)
        for missing in (manifest, manifest.parent):
            shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
            status, told, table = copy.run(**nothing)
            expect(f"nothing is embedded without {missing.name}", status == 0 and "Embedded {" not in table, told)
        copy.fill()

        for file in ("matmul/matvec.hip", "common/gpu.h", "matmul/matmul_core_TYPE.hip.template", "targets"):
            path = copy.folder / "hip" / file
            text = path.read_text()
            path.write_text(text.replace("-O3", "-O2") if file == "targets" else text + "// changed\n")
            refuses(copy, f"a change of {file} makes objects stale", "stale", "cargo kernels --prebuilt", **nothing)
        (copy.folder / "hip/common/zzz.h").write_text("")
        status, told, _ = copy.run(**nothing)
        expect("an empty header changes nothing", status == 0, told)
        copy.fill()
        (copy.folder / "hip/rows/matvec.hip").write_text("")
        refuses(copy, "two families of one name are an error", "hip/rows/matvec.hip", "same family", **nothing)
        formats = copy.folder / "hip/quant/formats.h"
        formats.write_text(formats.read_text().replace("HALF_FORMATS", "OTHER_FORMATS"))
        refuses(copy, "a template without types is an error", "has no list HALF_FORMATS", **nothing)
        manifest.write_text(manifest.read_text().replace("compiler ", "compiler other ", 1))
        refuses(copy, "another compiler makes objects stale", "stale", **nothing)
        manifest.write_text(manifest.read_text().rsplit(" ", 1)[0])
        refuses(copy, "a manifest that is cut off is an error", "manifest has the line", **nothing)
        manifest.write_text("")
        refuses(copy, "an empty manifest is an error", "manifest has the line", **nothing)
        next(manifest.parent.glob("*.lzma")).unlink()
        refuses(copy, "a missing archive is an error", "is missing", **nothing)

        status, told, table = copy.run(WAVELM_BUILD_KERNELS="gfx1100,sm_80")
        families = len({line.split()[0] for line in manifest.read_text().splitlines()[1:]})
        plain = table.count("Code::Plain")
        expect("the kernels are built where that is wanted", status == 0 and plain == 2 * families, told)
        first, *lines = manifest.read_text().splitlines()
        if first == f"compiler {kernels.compiler()}":
            hashes = [int(line.split()[-1], 16) for line in lines if line.split()[1] in ("gfx1100", "sm_80")]
            expect("they are the prebuilt ones", all(f"hash: {h:#x} " in table for h in hashes), table)
        refuses(copy, "an unknown target is an error", "gfx000", WAVELM_BUILD_KERNELS="gfx000")
        refuses(copy, "no compiler is an error", "no clang 17", WAVELM_BUILD_KERNELS="1", **nothing)
        (copy.folder / "hip/rows/norm.hip").write_text("nonsense\n")
        refuses(copy, "a compiler's error is shown", "norm.hip", "nonsense", WAVELM_BUILD_KERNELS="gfx1100")


if __name__ == "__main__":
    main()
