"""Uploaded pictures -> pixels, in a process of its own with little memory and little time.

Decoders are where hostile files do harm. The child opens three formats only, reads one picture, and is gone; whatever
happens to it is one refused upload.
"""

from node.decoding.handle import Decoder

__all__ = ["Decoder"]
