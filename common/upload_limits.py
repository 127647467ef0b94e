"""How large an uploaded picture may be. Settings and the wire both need it; settings must load fast."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """How large one picture may be. Bytes as they are sent; pixels as its header says."""

    max_bytes: int = 4 * 1024 * 1024
    max_pixels: int = 16_777_216
    max_side_px: int = 8192
