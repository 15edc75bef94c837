"""Model files made of other ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter

_WRITTEN_BY_ITSELF = ("general.architecture", "GGUF.")


def rewrite(source: Path, target: Path, *, tensors_per_part: int = 0, positions: int = 0) -> Path:
    """Write a model again, in several files or with learned positions, and return its first file."""
    reader = GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = GGUFWriter(target, architecture, split_max_tensors=tensors_per_part)
    for name, field in reader.fields.items():
        if not name.startswith(_WRITTEN_BY_ITSELF):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if positions:
        writer.add_tensor("position_embd.weight", np.zeros((positions, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(target.parent.glob(f"{target.stem}*.gguf"))
