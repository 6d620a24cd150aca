#!/usr/bin/env python3
"""How many memory latencies in a row the loops of a kernel wait for, by the machine code alone.

    isa_chain.py [--build] [--targets gfx1100,...] [--kernels REGEX] [--table FILE] [--check]

A loop that asks for all that it needs before it waits for the first of it takes about one latency a round.
Compilers that save registers wait in between, and each wait costs all of a latency, since a wave does nothing else
meanwhile. The model: loads from device memory come back in order, LATENCY instructions after they are issued, and
every other instruction takes one. Branches within a loop are taken as if both sides ran; loops within a loop count by
themselves.

Of a product on matrix cores, what follows its main loop counts as a whole: how many latencies it waits for.

Objects come from hip/prebuilt, or are built from the sources with --build. LLVM_OBJDUMP names the disassembler;
without it the newest installed one is taken. --check fails where a kernel misses the bars below. --table writes a
Markdown table.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import kernels  # noqa: E402

# Instructions that a wave could have issued while it waits for memory: 600 cycles.
LATENCY = 600
TARGETS = ["gfx1100", "gfx1201", "gfx942", "gfx90a"]
# Products with one column, which read each weight once and are nothing but waiting for memory.
COLUMN = re.compile(r"matvec_(three_|glu_|residual_)?(q4_k_q6_k|q4_k|q6_k|q4_0|q8_0)_1")
MOST_LATENCIES = 2.0
# Products with many columns on matrix cores.
CORE = re.compile(r"matmul_core_(q4_k|q6_k|q4_0|q8_0)_(128|64|32|16)")
MOST_WAITS = 8
# Half of what a compute unit has, so that another block fits.
MOST_LDS = 32 * 1024


class Instruction:
    """One line of a disassembly."""

    def __init__(self, address, name, operands, target):
        self.address, self.name, self.operands, self.target = address, name, operands, target
        self.is_load = bool(re.match(r"(global|buffer|flat)_load", name))
        self.is_branch = "branch" in name
        self.ends = self.is_branch or name in ("s_endpgm", "s_setpc_b64")

    def left(self):
        """How many loads may still be under way behind it, or None."""
        found = None
        if self.name == "s_waitcnt":
            found = re.search(r"vmcnt\((\d+)\)", self.operands)
        elif self.name.startswith("s_wait_loadcnt"):
            found = re.match(r"(0x[0-9a-f]+|\d+)", self.operands)
        return found and int(found[1], 0)


def functions(path):
    """The instructions of each function of an object."""
    dump = kernels.tool("LLVM_OBJDUMP", "llvm-objdump")
    text = subprocess.run([dump, "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True)
    found, name, start = {}, None, 0
    for line in text.stdout.splitlines():
        if head := re.match(r"([0-9a-f]+) <(.+)>:", line):
            name, start = head[2], int(head[1], 16)
            found[name] = []
        elif name and (body := re.match(r"\s+(\S+)(.*?)//\s*([0-9A-F]+):(.*)", line)):
            to = re.search(r"<.*\+0x([0-9a-f]+)>", body[4]) if "branch" in body[1] else None
            target = start + int(to[1], 16) if to else start if "branch" in body[1] else None
            found[name].append(Instruction(int(body[3], 16), body[1], body[2].strip(), target))
    return found


class Graph:
    """The blocks of a function between branches, and its loops."""

    def __init__(self, code):
        at = {instruction.address: i for i, instruction in enumerate(code)}
        starts = {0} | {i + 1 for i, x in enumerate(code) if x.ends} | {at[x.target] for x in code if x.target in at}
        starts = sorted(i for i in starts if i < len(code))
        number = {start: b for b, start in enumerate(starts)}
        self.blocks = [code[a:b] for a, b in zip(starts, [*starts[1:], len(code)])]
        self.after = []
        for b, block in enumerate(self.blocks):
            last = block[-1]
            to = {number[at[last.target]]} if last.is_branch and last.target in at else set()
            if last.name not in ("s_branch", "s_endpgm", "s_setpc_b64") and b + 1 < len(self.blocks):
                to.add(b + 1)
            self.after.append(to)
        self.before = [[a for a, to in enumerate(self.after) if b in to] for b in range(len(self.blocks))]
        # The blocks that are on each way to a block.
        all_blocks = set(range(len(self.blocks)))
        self.dominators = [{0}] + [all_blocks] * (len(self.blocks) - 1)
        changed = True
        while changed:
            changed = False
            for b in range(1, len(self.blocks)):
                ways = [self.dominators[a] for a in self.before[b]]
                new = {b} | (set.intersection(*ways) if ways else set())
                if new != self.dominators[b]:
                    self.dominators[b], changed = new, True
        self.loops = {}
        for a, to in enumerate(self.after):
            for head in to & self.dominators[a]:
                body, left = self.loops.setdefault(head, {head}), [a]
                while left:
                    if (b := left.pop()) not in body:
                        body.add(b)
                        left += self.before[b]

    def code(self, blocks):
        return [instruction for b in sorted(blocks) for instruction in self.blocks[b]]

    def own(self, head):
        """The blocks of a loop that are in no loop within it."""
        body = self.loops[head]
        inner = [other for h, other in self.loops.items() if h != head and other < body]
        return body.difference(*inner)


def run(code):
    """The time that instructions take, in latencies, how much of that they wait for loads, and their loads."""
    time, waited, loads, under_way = 0, 0, 0, []
    for instruction in code:
        time += 1
        if instruction.is_load:
            under_way.append(time + LATENCY)
            loads += 1
        if (left := instruction.left()) is not None:
            while len(under_way) > left:
                back = under_way.pop(0)
                waited += max(back - time, 0)
                time = max(time, back)
    return max([time, *under_way]) / LATENCY, waited / LATENCY, loads


def chains(code):
    """For each loop with loads: latencies of a round, loads, instructions."""
    graph = Graph(code)
    for head in sorted(graph.loops):
        body = graph.code(graph.own(head))
        latencies, _, loads = run(body)
        if loads:
            yield latencies, loads, len(body)


def waits_at_the_end(code):
    """How many latencies what follows the loops with matrix instructions waits for loads; loops count once."""
    graph = Graph(code)
    is_core = lambda body: any(re.match(r"v_(wmma|mfma)", x.name) for x in graph.code(body))  # noqa: E731
    main = set().union(*(body for body in graph.loops.values() if is_core(body)))
    behind, left = set(), [b for a in main for b in graph.after[a]]
    while left:
        if (b := left.pop()) not in behind | main:
            behind.add(b)
            left += graph.after[b]
    return run(graph.code(behind))[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--kernels", default="")
    parser.add_argument("--table")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    targets, rows, missed = options.targets.split(","), {}, []
    formats = ["q4_k", "q6_k", "q4_0", "q8_0"]
    families = ["matvec", *(f"matmul_core_{name}" for name in formats)]
    with tempfile.TemporaryDirectory() as out:
        how = [] if options.build else ["--unpack"]
        used = kernels.used(*how, "--out", out, "--targets", ",".join(targets), "--families", ",".join(families))
        for target in targets:
            for family in families:
                for kernel, code in functions(pathlib.Path(out) / f"{family}.{target}.hsaco").items():
                    if not re.search(options.kernels, kernel) or (kernel, target) not in used:
                        continue
                    registers = used[kernel, target]["vgprs"]
                    if COLUMN.fullmatch(kernel):
                        found = list(chains(code))
                        worst = max(latencies for latencies, _, _ in found)
                        text = f"{worst:.1f} ({registers})"
                        bad = worst > MOST_LATENCIES
                        for latencies, loads, length in found if options.kernels else []:
                            print(f"{kernel} {target}: {length} instructions, {loads} loads, {latencies:.1f} latencies")
                    elif CORE.fullmatch(kernel):
                        waits, lds = waits_at_the_end(code), used[kernel, target]["lds"]
                        text = f"{waits:.1f} ({registers})"
                        bad = waits > MOST_WAITS or (kernel.endswith("_128") and lds > MOST_LDS)
                    else:
                        continue
                    spills = used[kernel, target]["spills"] + used[kernel, target]["scratch"]
                    if bad or spills:
                        missed.append(f"{kernel} for {target}")
                        text += " MISSED"
                    rows.setdefault(kernel, {})[target] = text
    lines = [f"| kernel | {' | '.join(targets)} |", f"|---|{'---|' * len(targets)}"]
    lines += [f"| `{kernel}` | {' | '.join(row.get(t, '') for t in targets)} |" for kernel, row in rows.items()]
    if options.table:
        pathlib.Path(options.table).write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    if options.check and not rows:
        sys.exit("no kernel was found")
    if options.check and missed:
        sys.exit(f"{len(missed)} kernels wait for memory more often than they may: {', '.join(missed)}")


if __name__ == "__main__":
    main()
