"""A picture that is only a header, to see what is looked at before decoding."""

import struct
import zlib
from pathlib import Path


def png_header(path: Path, width: int, height: int) -> Path:
    """Write a PNG (8-bit RGB) that ends before its first pixel; decoding fails."""
    body = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    data = b'IDAT'
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + struct.pack('>I', 13)
        + body
        + struct.pack('>I', zlib.crc32(body))
        + struct.pack('>I', 0)
        + data
        + struct.pack('>I', zlib.crc32(data))
    )
    return path
