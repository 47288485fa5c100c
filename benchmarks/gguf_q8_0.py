"""Quantize a safetensors file of bf16 to GGUF's Q8_0 with the gguf package alone: the peer of `end_to_end.py`.

    python benchmarks/gguf_q8_0.py SOURCE.safetensors OUT.gguf

Reads through a memory map, as llama.cpp's converter does; the quantizing is the package's own numpy code.
"""

from __future__ import annotations

import json
import sys

import gguf
import numpy as np

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def main() -> None:
    """Quantize every matrix; vectors are kept as float32, as llama.cpp keeps them."""
    source, target = sys.argv[1:]
    data = np.memmap(source, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(data[8:start].tobytes())
    writer = gguf.GGUFWriter(target, "llama")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = (start + offset for offset in entry["data_offsets"])
        bits = data[first:last].view("<u2").reshape(entry["shape"])
        weights = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if weights.ndim == 1:
            writer.add_tensor(name, weights)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weights, Q8_0), raw_dtype=Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
