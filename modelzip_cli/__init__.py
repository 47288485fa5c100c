"""modelzip makes saved model checkpoints smaller. In Python, one function: `load_file`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__version__ = "0.1.0"


def load_file(path: str | Path, device: str = "cpu", *, key: str | None = None) -> dict[str, torch.Tensor]:
    """Return the weights of any file that modelzip reads, by name, ready for `load_state_dict`.

    Compressed tensors are decoded to the dtype they had; tied tensors share memory. `key` chooses a state dict of a
    nested checkpoint. Every checksum is verified. Raises `modelzip_cli.errors.ModelzipError` with a one-line message.
    """
    import numpy as np
    import torch

    from modelzip_cli.errors import UnsupportedCheckpoint
    from modelzip_cli.kernels import jit
    from modelzip_cli.plan import FOREVER
    from modelzip_cli.source import open_source

    source = open_source(Path(path), key=key)
    taken, factor, more = sum(spec.bytes for spec in source.specs.values()), *FOREVER
    if source.compressed and taken > factor * source.file.size + more:
        source.close()
        raise UnsupportedCheckpoint(f"{source.file.label}: would take {taken:,} bytes of memory; restore it to a file")
    if source.compressed:
        jit.expect(sum(spec.size for spec in source.specs.values()), jit.DECODING)
    try:
        tensors: dict[str, torch.Tensor] = {}
        ties = source.outer.ties if source.outer else {}
        for name, spec in source.specs.items():
            if spec.dtype.torch is None:
                raise UnsupportedCheckpoint(f"{source.file.label}: tensor {name}: torch has no type for {spec.dtype}")
            if name in ties:
                tensors[name] = tensors[ties[name]]
                continue
            bits = np.empty(spec.units, spec.dtype.unit)
            for start, stop in spec.unit_slabs():
                bits[start:stop] = source.read(name, start, stop)
            raw = torch.from_numpy(bits.view(np.uint8))
            tensors[name] = raw.view(getattr(torch, str(spec.dtype.torch))).reshape(spec.shape).to(device)
        source.finish()
    finally:
        source.close()
    return tensors
