"""The half of emuhip that runs kernels: packs arguments by the code object's metadata and emulates launches.

Limits of tinygrad's emulator are lifted in memory: it refuses halves on some processors, takes subnormal numbers for
zero, takes halves in registers from v128 on for upper halves on processors that have none, and multiplies all bits of
numbers of 24.
"""

import bisect
import ctypes
import importlib.util
import os
import struct
import sys
import time
import traceback

sys.path.insert(0, os.environ["TINYGRAD"])
os.environ.setdefault("DEV", "CPU:LLVM")
from tinygrad import dtypes  # noqa: E402
from tinygrad.renderer import llvmir  # noqa: E402
from code_object import USER_SGPRS, CodeObject  # noqa: E402

GUARD = 256
LOG = open(os.environ.get("EMU_LOG", os.devnull), "a", buffering=1)


# What a field of 24 bits is, which the emulator does not know.
SIGNED_24 = """    dt = DTYPES.get(field)
    if field == 'i24' and base.dtype.itemsize == 4:
      bits = base if base.dtype == dtypes.uint32 else base.bitcast(dtypes.uint32)
      negative = ((bits >> _u32(23)) & _u32(1)).ne(_u32(0))
      return negative.where(bits | _u32(0xFF000000), bits & _u32(0xFFFFFF)).bitcast(dtypes.int)
    if dt is None: return base
"""


def patched(name, changes):
    """A module of the emulator with other text in some places."""
    path = os.path.join(os.environ["TINYGRAD"], *name.split(".")) + ".py"
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path))
    sys.modules[name] = module
    with open(path) as file:
        text = file.read()
    for old, new in changes:
        text = text.replace(old, new)
    exec(compile(text, path, "exec"), module.__dict__)
    return module


def emulator():
    """The emulator's run_asm, with the limits lifted."""
    for renderer in vars(llvmir).values():
        if isinstance(renderer, type) and "supported_dtypes" in vars(renderer):
            def with_half(self, of=renderer.supported_dtypes):
                return of(self) | {dtypes.half}
            renderer.supported_dtypes = with_half
    patched("test.mockgpu.amd.pcode", [("    dt = DTYPES.get(field)\n    if dt is None: return base\n", SIGNED_24)])
    halves = [(text, text.replace("bits['", "'cdna' not in type(inst).__module__ and bits['", 1)) for text in (
        "write_hi_half = bits['d'] == 16", "vsrc1_hi = bits['s0'] == 16", "  if bits['s0'] == 16:  # src0 >= 384",
        "    if bits['s0'] == 16:\n      vsrc1_hi")]
    return patched("test.mockgpu.amd.emu", [("ftz_bits = 0x8040", "ftz_bits = 0"), *halves]).run_asm


run_asm = emulator()
# Sizes of allocations by address, and their addresses in order. Handles are places in the other lists; 0 is none.
memory, starts, objects, functions, graphs = {}, [], [None], [None], [None]


def allocated(start, size):
    memory[start] = size
    bisect.insort(starts, start)
    return 0


def freed(start):
    """The size of an allocation; -1 where something was written next to it."""
    size = memory.pop(start)
    starts.remove(start)
    around = ctypes.string_at(start - GUARD, GUARD) + ctypes.string_at(start + size, GUARD)
    if around.strip(b"\xa5"):
        print("something was written next to an allocation", file=sys.stderr)
        return -1
    return size


def is_inside(address):
    last = bisect.bisect_right(starts, address) - 1
    return last >= 0 and address < starts[last] + max(memory[starts[last]], 1)


def load(code):
    objects.append(CodeObject(code))
    return len(objects) - 1


def function(module, name):
    if name not in objects[module].kernels:
        return 0
    functions.append((objects[module], name))
    return len(functions) - 1


def begin():
    graphs.append([])
    return len(graphs) - 1


def pack(code, name, parameters, block):
    """The kernel arguments, from an array of pointers to them."""
    kernel = code.kernels[name]
    packed = bytearray(kernel[".kernarg_segment_size"])
    if block != kernel[".max_flat_workgroup_size"]:
        raise ValueError(f"{name}: {block} threads, compiled for {kernel['.max_flat_workgroup_size']}")
    for i, argument in enumerate(kernel[".args"]):
        if argument[".value_kind"].startswith("hidden_"):
            raise ValueError(f"{name}: a hidden argument")
        at, = struct.unpack("<Q", ctypes.string_at(parameters + 8 * i, 8))
        value = ctypes.string_at(at, argument[".size"])
        packed[argument[".offset"]:argument[".offset"] + argument[".size"]] = value
        if argument[".value_kind"] == "global_buffer":
            address, = struct.unpack("<Q", value)
            if address and not is_inside(address):
                raise ValueError(f"{name}: argument {i}, {address:#x}, is not device memory")
    return bytes(packed)


def run(code, name, grid, block, arguments):
    buffer = ctypes.create_string_buffer(arguments + bytes(64), len(arguments) + 64)
    descriptor = code.base + code.symbols[name + ".kd"]
    shared, scratch = struct.unpack("<II", ctypes.string_at(descriptor, 8))
    entry, = struct.unpack("<q", ctypes.string_at(descriptor + 16, 8))
    resources, properties = struct.unpack("<IH", ctypes.string_at(descriptor + 52, 6))
    registers = []
    for bit, (what, count) in enumerate(USER_SGPRS):
        if properties >> bit & 1:
            address = ctypes.addressof(buffer) if what == "kernarg_ptr" else 0
            registers += [address & 0xFFFFFFFF, address >> 32, 0, 0][:count]
    resources = (resources & ~(0x1FF << 15)) | (((shared + 511) // 512) << 15)
    began = time.time()
    run_asm(descriptor + entry, code.size, *grid, block, 1, 1, ctypes.addressof(buffer), rsrc2=resources,
            scratch_size=scratch, arch=code.family, user_data=registers or [0, 0])
    print(f"{name} grid {grid} block {block} {time.time() - began:.2f} s", file=LOG)


def failed():
    traceback.print_exc(file=LOG)
    traceback.print_exc()
    return 1


def launch(handle, x, y, z, block, parameters, graph):
    try:
        code, name = functions[handle]
        one = (code, name, (x, y, z), block, pack(code, name, parameters, block))
        if graph:
            graphs[graph].append(one)
        else:
            run(*one)
        return 0
    except Exception:
        return failed()


def replay(graph):
    try:
        for one in graphs[graph]:
            run(*one)
        return 0
    except Exception:
        return failed()
