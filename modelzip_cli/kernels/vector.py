"""rANS with eight lanes an instruction: the kernels of `rans` and `points` again, for CPUs with AVX2. With AVX-512, the
encoder takes 16 lanes and the decoder fewer steps. The only module that imports llvmlite.

A gather looks up eight table entries, and a shuffle out of a table of 256 spreads the next words over the lanes that
need one, or packs those of the lanes that give one. What is left over, at the end of a row or of the words, is done a
lane at a time; so is everything where the code is compiled for a CPU without AVX2. The bytes are those of the twins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import NDArray

from modelzip_cli.kernels import points, rans
from modelzip_cli.kernels.jit import jit
from modelzip_cli.kernels.points import Classes, LowBits
from modelzip_cli.kernels.rans import Bytes, Lines, Slots, States, Symbols, Words

AVAILABLE: bool = "+avx2" in cpu_target.target_context.codegen().magic_tuple()[2]  # of the CPU compiled for
WIDE: bool = "+avx512vl" in cpu_target.target_context.codegen().magic_tuple()[2]  # has 16 lanes, and more for 8

lowering: Any = cgutils  # without annotations of their own
kinds: Any = types

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
LANES = 8
BYTES, SHORTS, INTS, FLOATS = (ir.VectorType(kind, LANES) for kind in (I8, I16, I32, ir.FloatType()))
SHUFFLE = ir.VectorType(I8, 16)
VECTORS = rans.LANES // LANES


def _shuffles(pack: bool) -> list[list[int]]:
    """Byte shuffles of eight words by mask: the first words to the lanes of the mask, or those lanes to the end."""
    made = []
    for mask in range(1 << LANES):
        lanes = [lane for lane in range(LANES) if mask >> lane & 1]
        sources = [-1] * LANES  # gives 0
        for word, lane in enumerate(lanes):
            sources[LANES - len(lanes) + word if pack else lane] = lane if pack else word
        made.append([byte & 255 for word in sources for byte in ((word * 2, word * 2 + 1) if word >= 0 else (-1, -1))])
    return made


class _Vectors:
    """Instructions on eight lanes, in the function that `builder` is writing."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.module = builder.module

    def splat(self, value: Any, kind: Any = INTS) -> Any:
        """The same value in every lane; `value` is an integer or a scalar of the code."""
        if isinstance(value, int):
            return ir.Constant(kind, [value] * kind.count)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        lanes = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), lanes)

    def load(self, base: Any, at: Any, kind: Any) -> Any:
        """Lanes that begin at entry `at`."""
        where = self.builder.bitcast(self.builder.gep(base, [at]), kind.as_pointer())
        return self.builder.load(where, align=kind.element.width // 8)

    def store(self, value: Any, base: Any, at: Any) -> None:
        """Write lanes from entry `at` on."""
        where = self.builder.bitcast(self.builder.gep(base, [at]), value.type.as_pointer())
        self.builder.store(value, where, align=value.type.element.width // 8)

    def gather(self, base: Any, at: Any) -> Any:
        """The 32-bit entries `at`."""
        pointer = I8.as_pointer()
        if at.type != INTS:
            truths = ir.VectorType(ir.IntType(1), at.type.count)
            kind = ir.FunctionType(at.type, [at.type, pointer, at.type, truths, I32])
            call = lowering.get_or_insert_function(self.module, kind, "llvm.x86.avx512.mask.gather.dpi.512")
            start = self.builder.bitcast(base, pointer)
            every = ir.Constant(truths, [1] * truths.count)
            return self.builder.call(call, [self.splat(0, at.type), start, at, every, ir.Constant(I32, 4)])
        kind = ir.FunctionType(INTS, [INTS, pointer, INTS, INTS, I8])
        call = lowering.get_or_insert_function(self.module, kind, "llvm.x86.avx2.gather.d.d.256")
        start = self.builder.bitcast(base, pointer)
        return self.builder.call(call, [self.splat(0), start, at, self.splat(-1), ir.Constant(I8, 4)])

    def shuffled(self, words: Any, mask: Any, name: str, pack: bool) -> Any:
        """Eight words shuffled by `mask`, an 8-bit integer."""
        kind = ir.ArrayType(SHUFFLE, 1 << LANES)
        table = self.module.globals.get(name)
        if table is None:
            table = lowering.add_global_variable(self.module, kind, name)
            table.initializer = ir.Constant(kind, [ir.Constant(SHUFFLE, row) for row in _shuffles(pack)])
            table.global_constant, table.linkage, table.align = True, "internal", 64
        at = self.builder.zext(mask, I64)
        control = self.builder.load(self.builder.gep(table, [ir.Constant(I64, 0), at]))
        call = lowering.get_or_insert_function(
            self.module, ir.FunctionType(SHUFFLE, [SHUFFLE, SHUFFLE]), "llvm.x86.ssse3.pshuf.b.128"
        )
        return self.builder.bitcast(self.builder.call(call, [self.builder.bitcast(words, SHUFFLE), control]), SHORTS)

    def parts(self, *vectors: Any) -> list[Any]:
        """Eight lanes at a time of vectors, as tuples."""
        found = []
        for first in range(0, vectors[0].type.count, LANES):
            lanes = ir.Constant(ir.VectorType(I32, LANES), [*range(first, first + LANES)])
            found.append(tuple(self.builder.shuffle_vector(each, each, lanes) for each in vectors))
        return found

    def spread(self, words: Any, chosen: Any, mask: Any) -> Any:
        """The first of eight words as 32-bit lanes where `chosen` is true, 0 elsewhere."""
        if not WIDE:
            return self.builder.zext(self.shuffled(words, mask, "modelzip_spread", pack=False), INTS)
        kind = ir.FunctionType(INTS, [INTS, INTS, chosen.type])
        call = lowering.get_or_insert_function(self.module, kind, "llvm.x86.avx512.mask.expand.v8i32")
        return self.builder.call(call, [self.builder.zext(words, INTS), self.splat(0), chosen])

    def mask_and_count(self, chosen: Any) -> tuple[Any, Any]:
        """Eight truth values as an 8-bit integer, and how many are true."""
        mask = self.builder.bitcast(chosen, I8)
        return mask, self.builder.zext(self.builder.ctpop(mask), I64)


def _check(**arrays: tuple[Any, int]) -> None:
    """Refuse, when a kernel is compiled, arrays that are not rows of entries of so many bits."""
    for name, (kind, bits) in arrays.items():
        if kind.ndim != 1 or kind.layout != "C" or kind.dtype.bitwidth != bits:
            raise TypeError(f"{name} is {kind}")


def _decode_groups(
    typing: Any, words: Any, place: Any, states: Any, slots: Any, offsets: Any, bits: Any, out: Any
) -> Any:
    """Decode groups of 32 from the left while words are sure to suffice; return the place and the columns done."""
    _check(words=(words, 16), states=(states, 32), slots=(slots, 32), offsets=(offsets, 32), out=(out, 8))
    signature = kinds.UniTuple(kinds.int64, 2)(words, kinds.int64, states, slots, offsets, kinds.int64, out)

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        arrays = {i: context.make_array(signature.args[i])(context, b, arguments[i]) for i in (0, 2, 3, 4, 6)}
        word, state, slot, offset, symbol = (arrays[i].data for i in (0, 2, 3, 4, 6))
        bits = b.trunc(arguments[5], I32)
        v = _Vectors(b)
        at, now = lowering.alloca_once_value(b, ir.Constant(I64, 0)), lowering.alloca_once_value(b, arguments[1])
        if AVAILABLE:
            shift = v.splat(bits)
            low = v.splat(b.sub(b.shl(ir.Constant(I32, 1), bits), ir.Constant(I32, 1)))
            starts = [ir.Constant(I64, LANES * part) for part in range(VECTORS)]
            xs = [lowering.alloca_once_value(b, v.load(state, start, INTS)) for start in starts]
            width, size = arrays[6].nitems, arrays[0].nitems
            group = ir.Constant(I64, rans.LANES)
            test, body, end = (b.append_basic_block(name) for name in ("test", "body", "end"))
            b.branch(test)
            b.position_at_end(test)
            column, taken = b.load(at), b.load(now)
            b.cbranch(
                b.and_(
                    b.icmp_signed("<=", b.add(column, group), width), b.icmp_signed("<=", b.add(taken, group), size)
                ),
                body,
                end,
            )
            b.position_at_end(body)
            found = []
            for x_at, start in zip(xs, starts, strict=True):
                x = b.load(x_at)
                where = b.add(v.load(offset, b.add(column, start), INTS), b.and_(x, low))
                entry = v.gather(slot, where)
                found.append(entry)
                x = b.mul(b.lshr(entry, v.splat(20)), b.lshr(x, shift))
                x = b.add(x, b.and_(b.lshr(entry, v.splat(8)), v.splat(4095)))
                short = b.icmp_unsigned("<", x, v.splat(1 << 16))
                mask, count = v.mask_and_count(short)
                x = b.or_(b.select(short, b.shl(x, v.splat(16)), x), v.spread(v.load(word, taken, SHORTS), short, mask))
                b.store(x, x_at)
                taken = b.add(taken, count)
            for entry, start in zip(found, starts, strict=True):
                v.store(b.trunc(entry, BYTES), symbol, b.add(column, start))
            b.store(taken, now)
            b.store(b.add(column, group), at)
            b.branch(test)
            b.position_at_end(end)
            for x_at, start in zip(xs, starts, strict=True):
                v.store(b.load(x_at), state, start)
        return context.make_tuple(b, signature.return_type, [b.load(now), b.load(at)])

    return signature, generate


decode_groups: Any = intrinsic(_decode_groups)


def _encode_groups(
    typing: Any, symbols: Any, columns: Any, intervals: Any, line: Any, bits: Any, states: Any, room: Any, place: Any
) -> Any:
    """Encode groups of 32 columns from `columns`, a multiple of 32, to the left, as long as there is room for sure.

    A state is divided by multiplying with a reciprocal that is slightly too small, which no other step waits for: the
    quotient is right or one too small.
    """
    narrow = 8 if symbols.dtype.bitwidth == 8 else 16
    _check(symbols=(symbols, narrow), intervals=(intervals, 32), line=(line, 32), states=(states, 32), room=(room, 16))
    signature = kinds.UniTuple(kinds.int64, 2)(
        symbols, kinds.int64, intervals, line, kinds.int64, states, room, kinds.int64
    )

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        arrays = {i: context.make_array(signature.args[i])(context, b, arguments[i]) for i in (0, 2, 3, 5, 6)}
        symbol, interval, offset, state, word = (arrays[i].data for i in (0, 2, 3, 5, 6))
        bits = b.trunc(arguments[4], I32)
        v = _Vectors(b)
        at, now = lowering.alloca_once_value(b, arguments[1]), lowering.alloca_once_value(b, arguments[7])
        if AVAILABLE:
            wide = 2 * LANES if WIDE else LANES
            ints, floats = ir.VectorType(I32, wide), ir.VectorType(ir.FloatType(), wide)
            shift, down = v.splat(bits, ints), v.splat(b.sub(ir.Constant(I32, 32), bits), ints)
            total = v.splat(b.shl(ir.Constant(I32, 1), bits), ints)
            nearly_one = ir.Constant(floats, [1 - 2**-22] * wide)
            starts = [ir.Constant(I64, first) for first in range(0, rans.LANES, wide)]
            xs = [lowering.alloca_once_value(b, v.load(state, start, ints)) for start in starts]
            group = ir.Constant(I64, rans.LANES)
            test, body, end = (b.append_basic_block(name) for name in ("test", "body", "end"))
            b.branch(test)
            b.position_at_end(test)
            column, place = b.load(at), b.load(now)
            b.cbranch(
                b.and_(b.icmp_signed(">=", column, group), b.icmp_signed(">=", place, group)),
                body,
                end,
            )
            b.position_at_end(body)
            column = b.sub(column, group)
            for x_at, start in reversed([*zip(xs, starts, strict=True)]):
                x, first = b.load(x_at), b.add(column, start)
                own = b.zext(v.load(symbol, first, ir.VectorType(ir.IntType(narrow), wide)), ints)
                found = v.gather(interval, b.add(own, v.load(offset, first, ints)))
                f, c = b.and_(found, v.splat(0xFFFF, ints)), b.lshr(found, v.splat(16, ints))
                reciprocal = b.fdiv(nearly_one, b.sitofp(f, floats))
                full = b.icmp_unsigned(">=", x, b.shl(found, down))
                for part in reversed(v.parts(b.trunc(x, ir.VectorType(I16, wide)), full)):
                    mask, count = v.mask_and_count(part[1])
                    packed = v.shuffled(part[0], mask, "modelzip_pack", pack=True)
                    v.store(packed, word, b.sub(place, ir.Constant(I64, LANES)))  # below `place`: written over later
                    place = b.sub(place, count)
                x = b.select(full, b.lshr(x, v.splat(16, ints)), x)
                # x is below 2^(32 - bits) f, so q below 2^21, and three roundings and the 2^-22 cost less than one
                q = b.fptosi(b.fmul(b.uitofp(x, floats), reciprocal), ints)
                rest = b.sub(x, b.mul(q, f))
                x = b.add(b.add(rest, c), b.shl(q, shift))
                more = b.icmp_signed(">=", rest, f)
                b.store(b.add(x, b.select(more, b.sub(total, f), v.splat(0, ints))), x_at)
            b.store(place, now)
            b.store(column, at)
            b.branch(test)
            b.position_at_end(end)
            for x_at, start in zip(xs, starts, strict=True):
                v.store(b.load(x_at), state, start)
        return context.make_tuple(b, signature.return_type, [b.load(now), b.load(at)])

    return signature, generate


encode_groups: Any = intrinsic(_encode_groups)


@jit(twin=rans._encode_numpy)
def encode(
    symbols: Symbols,
    lines: Lines,
    line_of: NDArray[np.intp],
    intervals: NDArray[np.uint32],
    bits: int,
    states: States,
    room: Words,
) -> int:
    place, lanes = room.size, states.size
    b, down = np.uint32(bits), np.uint32(32 - bits)
    for back in range(symbols.shape[0] - 1, -1, -1):
        row, line = symbols[back], lines[line_of[back]]
        column = row.size
        while column > 0:
            if lanes == 32 and column % 32 == 0:
                place, column = encode_groups(row, column, intervals, line, bits, states, room, place)
            if column > 0:
                left = (column - 1) // lanes * lanes
                for j in range(column - 1, left - 1, -1):
                    found = intervals[np.uint64(row[j]) + np.uint64(line[j])]
                    f, c, x = np.uint32(found & np.uint32(0xFFFF)), np.uint32(found >> np.uint32(16)), states[j - left]
                    if x >= np.uint32(f << down):
                        place -= 1
                        room[place] = np.uint16(x)
                        x = np.uint32(x >> np.uint32(16))
                    states[j - left] = np.uint32(np.uint32(x // f << b) + np.uint32(x % f) + c)
                column = left
    return int(place)


@jit(twin=rans._decode_symbols_numpy)
def decode_symbols(
    words: Words,
    states: States,
    slots: Slots,
    lines: Lines,
    line_of: NDArray[np.intp],
    bits: int,
    symbols: NDArray[np.uint8],
) -> int:
    place, lanes, b, mask = 0, states.size, np.uint32(bits), np.uint32((1 << bits) - 1)
    x = states.copy()
    for i in range(symbols.shape[0]):
        row, offset, done = symbols[i], lines[line_of[i]], 0
        if lanes == 32:
            place, done = decode_groups(words, place, x, slots, offset, bits, row)
        for j in range(done, row.size):
            lane = j % lanes
            y = x[lane]
            found = slots[np.uint64(offset[j]) + np.uint64(y & mask)]
            row[j] = np.uint8(found)
            y = np.uint32((found >> np.uint32(20)) * (y >> b) + (found >> np.uint32(8) & np.uint32(4095)))
            if y < np.uint32(65536):
                if place >= words.size:
                    return -1
                y = np.uint32(y << np.uint32(16) | np.uint32(words[place]))
                place += 1
            x[lane] = y
    states[:] = x
    return int(place)


@jit(twin=rans._decode_units16_numpy)
def decode_units16(
    words: Words,
    states: States,
    slots: Slots,
    lines: Lines,
    line_of: NDArray[np.intp],
    bits: int,
    second: Bytes,
    units: Words,
) -> int:
    u16, high, low = np.uint16, np.uint16(0x80), np.uint16(0x7F)
    lanes, width, b, mask = states.size, lines.shape[1], np.uint32(bits), np.uint32((1 << bits) - 1)
    x, row = states.copy(), np.empty(width, np.uint8)
    place: Any = 0
    for i in range(line_of.size):
        offset, done = lines[line_of[i]], 0
        if lanes == 32:
            place, done = decode_groups(words, place, x, slots, offset, bits, row)
        for j in range(done, width):
            lane = j % lanes
            y = x[lane]
            found = slots[np.uint64(offset[j]) + np.uint64(y & mask)]
            row[j] = np.uint8(found)
            y = np.uint32((found >> np.uint32(20)) * (y >> b) + (found >> np.uint32(8) & np.uint32(4095)))
            if y < np.uint32(65536):
                if place >= words.size:
                    return -1
                y = np.uint32(y << np.uint32(16) | np.uint32(words[place]))
                place += 1
            x[lane] = y
        begin = i * width
        size = min(width, units.size - begin)
        for j in range(size):
            rest = u16(second[begin + j])
            sign = u16(u16(rest & high) << u16(8))
            units[begin + j] = u16(u16(sign | u16(u16(row[j]) << u16(7))) | u16(rest & low))
        for j in range(size, width):
            if row[j] != row[size - 1]:
                return -1
    states[:] = x
    return int(place)


@jit(twin=points._decode_points_numpy)
def decode_points(
    words: Words,
    states: States,
    slots: Slots,
    rows: Classes,
    columns: Classes,
    bits: int,
    machine: bool,
    low_bits: LowBits,
    escapes: NDArray[np.int32],
    low: NDArray[np.uint8],
    step: np.float32,
    values: NDArray[np.float32],
) -> int:
    i16, i32, u64, lanes, width = np.int16, np.int32, np.uint64, states.size, columns.size
    place: Any = 0
    b, mask = np.uint32(bits), np.uint32((1 << bits) - 1)
    to_class = i32(bits + 1 if machine else bits)
    x, machines = states.copy(), np.zeros(width, i16)
    base, offsets, ks = np.empty(width, i32), np.empty(width, i32), np.empty(width, i32)
    symbols = np.empty(width, np.uint8)
    for j in range(width):
        base[j] = i32(columns[j] << to_class)
    least, most = (columns.min(), columns.max()) if width else (i32(0), i32(-1))
    found: Any = 0
    lows: Any = 0
    for i in range(rows.size):
        a, row, even = rows[i], values[i], i32(rows[i] << to_class)
        odd = i32(even + (i32(1) << bits))
        for j in range(width):
            offsets[j] = i32(base[j] + (odd if machines[j] & i16(1) else even))
        done = 0
        if lanes == 32:
            place, done = decode_groups(words, place, x, slots, offsets, bits, symbols)
        for j in range(done, width):
            lane = j % lanes
            y = x[lane]
            entry = slots[np.uint64(offsets[j]) + np.uint64(y & mask)]
            symbols[j] = np.uint8(entry)
            y = np.uint32((entry >> np.uint32(20)) * (y >> b) + (entry >> np.uint32(8) & np.uint32(4095)))
            if y < np.uint32(65536):
                if place >= words.size:
                    return -1
                y = np.uint32(y << np.uint32(16) | np.uint32(words[place]))
                place += 1
            x[lane] = y
        for left in range(0, width, 64):
            part, k = symbols[left : left + 64], ks[left : left + 64]
            rare = np.uint8(0)
            for j in range(part.size):
                k[j] = i32(part[j]) - i32(127)
                rare |= np.uint8(part[j] == np.uint8(255))
            if rare:
                for j in range(part.size):
                    if part[j] == np.uint8(255):
                        if found >= escapes.size:
                            return -1
                        k[j] = escapes[found]
                        found += 1
        fine = False
        for c in range(a + least, a + most + 1):
            fine |= low_bits[u64(c)] > 0
        if fine:
            for j in range(width):
                raw = low_bits[u64(a + columns[j])]
                some = np.int64(raw > 0)
                if lows + some > low.size:
                    return -1
                bits_of = i32(low[u64(min(lows, low.size - 1))]) & i32(-some) if low.size else i32(0)
                ks[j] = i32(i32(ks[j] << raw) | bits_of)
                lows += some
        if machine:
            for j in range(width):
                k, s = ks[j], i32(machines[j])
                q, n = i32(s & i32(1)), i32(k + k)
                machines[j] = i16(i32(s >> i32(1)) ^ i32(n & i32(2)) ^ q ^ i32(q << i32(2)))
                row[j] = np.float32(i32(n - i32(q & i32(k > 0)) + i32(q & i32(k < 0)))) * step
        else:
            for j in range(width):
                row[j] = np.float32(ks[j]) * step
    states[:] = x
    return place if found == escapes.size and lows == low.size else -1
