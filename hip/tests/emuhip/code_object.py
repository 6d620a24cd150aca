"""AMD code objects: what a runtime reads in one to launch its kernels."""

import ctypes
import struct

# What a kernel descriptor may ask for in scalar registers, in order, with the number of registers.
USER_SGPRS = (("private_segment_buffer", 4), ("dispatch_ptr", 2), ("queue_ptr", 2), ("kernarg_ptr", 2),
              ("dispatch_id", 2), ("flat_scratch_init", 2), ("private_segment_size", 1))

# Cache maintenance (buffer_gl0_inv and buffer_gl1_inv; global_wb and global_inv of a workgroup) does nothing on the one
# core that is emulated, and is not decoded: s_nop takes its place.
CACHE_OPS = {"rdna3": (bytes.fromhex("0000ace000000000"), bytes.fromhex("0000b0e000000000")),
             "rdna4": (bytes.fromhex("7c000bee0000040000000000"), bytes.fromhex("7cc00aee0000040000000000"))}
S_NOP = struct.pack("<I", 0xBF800000)


def msgpack(data, at=0):
    """A value of the few kinds that metadata has, and where it ends."""
    kind = data[at]

    def sequence(count, at):
        values = []
        for _ in range(count):
            value, at = msgpack(data, at)
            values.append(value)
        return values, at

    def mapping(count, at):
        values, at = sequence(2 * count, at)
        return dict(zip(values[::2], values[1::2])), at

    def text(length, at):
        return data[at:at + length].decode(), at + length

    if kind <= 0x7F:
        return kind, at + 1
    if kind <= 0x8F:
        return mapping(kind & 15, at + 1)
    if kind <= 0x9F:
        return sequence(kind & 15, at + 1)
    if kind <= 0xBF:
        return text(kind & 31, at + 1)
    if kind == 0xC0:
        return None, at + 1
    if kind in (0xC2, 0xC3):
        return kind == 0xC3, at + 1
    numbers = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
    if kind in numbers:
        return struct.unpack_from(numbers[kind], data, at + 1)[0], at + 1 + struct.calcsize(numbers[kind])
    lengths = {0xD9: (">B", text), 0xDA: (">H", text), 0xDB: (">I", text), 0xDC: (">H", sequence),
               0xDD: (">I", sequence), 0xDE: (">H", mapping), 0xDF: (">I", mapping)}
    form, read = lengths[kind]
    return read(struct.unpack_from(form, data, at + 1)[0], at + 1 + struct.calcsize(form))


class CodeObject:
    """A loaded code object: its image in memory, symbols, and the metadata of its kernels by name."""

    def __init__(self, data):
        if data[:4] != b"\x7fELF":
            raise ValueError("no code object")
        programs, sections = struct.unpack_from("<QQ", data, 32)
        program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", data, 54)
        headers = [struct.unpack_from("<IIQQQQQQ", data, programs + k * program_size) for k in range(program_count)]
        sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections + k * section_size) for k in range(section_count)]
        self.size = max(h[3] + h[6] for h in headers if h[0] == 1)
        # Emulated code need not lie in executable memory.
        self.image = ctypes.create_string_buffer(self.size + 4096)
        self.base = ctypes.addressof(self.image)
        self.symbols, self.metadata = {}, {}
        for kind, _, offset, address, _, length, _, _ in headers:
            if kind == 1:
                ctypes.memmove(self.base + address, data[offset:offset + length], length)
            elif kind == 4:
                self.read_notes(data, offset, offset + length)
        self.target = self.metadata.get("amdhsa.target", "")
        self.kernels = {k[".name"]: k for k in self.metadata.get("amdhsa.kernels", [])}
        for section in sections:
            if section[1] == 11:
                self.read_symbols(data, section, sections[section[6]][4])
            if section[2] & 4:
                self.drop_cache_ops(section)

    def read_notes(self, data, at, end):
        while at < end:
            name_size, size, kind = struct.unpack_from("<III", data, at)
            start = at + 12 + (name_size + 3 & ~3)
            if kind == 32:
                self.metadata = msgpack(data[start:start + size])[0]
            at = start + (size + 3 & ~3)

    def read_symbols(self, data, section, strings):
        for k in range(section[5] // 24):
            name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, section[4] + 24 * k)
            self.symbols[data[strings + name:data.index(b"\0", strings + name)].decode()] = value

    def drop_cache_ops(self, section):
        text = ctypes.string_at(self.base + section[3], section[5])
        for operation in CACHE_OPS.get(self.family, ()):
            text = text.replace(operation, S_NOP * (len(operation) // 4))
        ctypes.memmove(self.base + section[3], text, len(text))

    @property
    def family(self):
        """What the emulator calls the instruction set."""
        version = self.target.rsplit("gfx", 1)[-1]
        for start, family in (("11", "rdna3"), ("12", "rdna4"), ("9", "cdna")):
            if version.startswith(start):
                return family
        raise ValueError(f"{self.target} cannot be emulated")
