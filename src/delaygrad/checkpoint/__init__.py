"""Checkpoints: files that cannot run code, whole or not there, and alike on all ranks."""

from delaygrad.checkpoint.files import (
    find,
    name_aside,
    path_of,
    read_about,
    read_stage,
    rewind,
    stages_in,
    synchronise,
)
from delaygrad.checkpoint.together import Newest, Share, all_do, find_newest, write

__all__ = [
    "Newest",
    "Share",
    "all_do",
    "find",
    "find_newest",
    "name_aside",
    "path_of",
    "read_about",
    "read_stage",
    "rewind",
    "stages_in",
    "synchronise",
    "write",
]
