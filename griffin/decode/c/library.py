"""Bindings to the compiled step: the structures of ``model.h`` and the functions of ``step.c``.

If there was no C compiler at installation, ``available()`` is False.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path

from griffin.decode.decoder import PASS_TOKENS
from griffin.library import compiled

logger = logging.getLogger("griffin")

# Names of ``Matrix.format``; their position is their number in model.h.
FORMATS = ("float32", "bfloat16", "float16", "int8", "grouped4", "grouped6", "grouped8")
# As in model.h: most tokens of a pass.
MOST_TOKENS = PASS_TOKENS
# The formats that keys and values can have.
CACHE_FORMATS = ("float32", "bfloat16", "float16")


class CNorm(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("centred", ctypes.c_int32),
    )


class CGroups(ctypes.Structure):
    _fields_ = (
        ("scales", ctypes.c_void_p),
        ("minimums", ctypes.c_void_p),
        ("supers", ctypes.c_void_p),
        ("super_minimums", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("super_stride", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("neurons", ctypes.c_void_p),
        ("zero", ctypes.c_float),
    )


class CMatrix(ctypes.Structure):
    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("format", ctypes.c_int64),
        ("groups", CGroups),
    )


class CProjection(ctypes.Structure):
    _fields_ = (
        ("matrix", CMatrix),
        ("bias", ctypes.c_void_p),
    )


class CRotary(ctypes.Structure):
    _fields_ = (
        ("frequencies", ctypes.c_void_p),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("pairs", ctypes.c_int64),
        ("scaling", ctypes.c_double),
        ("interleaved", ctypes.c_int64),
    )


class CThresholds(ctypes.Structure):
    _fields_ = (
        ("gate", CMatrix),
        ("factors", ctypes.c_void_p),
        ("means", ctypes.c_void_p),
        ("input_limits", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("gate_limits", ctypes.c_void_p),
        ("resting", ctypes.c_void_p),
        ("output_limits", ctypes.c_void_p),
    )


class CFeedForward(ctypes.Structure):
    _fields_ = (
        ("gate", CProjection),
        ("up", CProjection),
        ("contract", CProjection),
        ("thresholds", CThresholds),
    )


class CLayer(ctypes.Structure):
    _fields_ = (
        ("before_attention", CNorm),
        ("query_norm", CNorm),
        ("key_norm", CNorm),
        ("after_attention", CNorm),
        ("before_feed_forward", CNorm),
        ("after_feed_forward", CNorm),
        ("query_key_value", CProjection * 3),
        ("output", CProjection),
        ("feed_forward", CFeedForward),
        ("rotary", ctypes.POINTER(CRotary)),
        ("window", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
    )


class CModel(ctypes.Structure):
    _fields_ = (
        ("embedding", CMatrix),
        ("positions", CMatrix),
        ("head", CProjection),
        ("final_norm", CNorm),
        ("layers", ctypes.POINTER(CLayer)),
        ("rotaries", ctypes.POINTER(CRotary)),
        ("layer_count", ctypes.c_int64),
        ("rotary_count", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
        ("embedding_scale", ctypes.c_double),
        ("residual_scale", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("query_growth", ctypes.c_double),
        ("score_cap", ctypes.c_double),
        ("logit_divisor", ctypes.c_double),
        ("logit_cap", ctypes.c_double),
        ("query_context", ctypes.c_int64),
        ("activation", ctypes.c_int64),
        ("cache_format", ctypes.c_int64),
    )


class CObserved(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("up", ctypes.c_void_p),
        ("z", ctypes.c_void_p),
    )


# Sizes that must be equal here and in model.h, see ``griffin_layout``.
LAYOUT = MOST_TOKENS << 56 | sum(
    ctypes.sizeof(part) << shift for part, shift in ((CModel, 40), (CLayer, 20), (CFeedForward, 8), (CRotary, 0))
)


@cache
def library() -> ctypes.CDLL | None:
    """The library built at installation; None if there is none."""
    return _load(compiled())


def _load(path: Path | None) -> ctypes.CDLL | None:
    """Load the library; None if it is missing or cannot be used."""
    if path is None:
        logger.warning(
            "decoding without the compiled step, two to three times slower: it was not built (no C compiler?)"
        )
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.griffin_layout.restype = ctypes.c_int64
        layout = library.griffin_layout()
        blocks = ctypes.POINTER(CFeedForward)
        library.griffin_open.restype = ctypes.c_void_p
        library.griffin_open.argtypes = (ctypes.POINTER(CModel), ctypes.c_int)
        library.griffin_pass.restype = None
        library.griffin_pass.argtypes = (
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int,
            ctypes.c_void_p, ctypes.POINTER(CObserved),
        )  # fmt: skip
        library.griffin_keep.restype = None
        library.griffin_keep.argtypes = (ctypes.c_void_p, blocks, blocks, ctypes.c_void_p)
        library.griffin_rest.restype = None
        library.griffin_rest.argtypes = (ctypes.c_void_p, blocks)
        library.griffin_close.restype = None
        library.griffin_close.argtypes = (ctypes.c_void_p,)
    except (OSError, AttributeError) as broken:
        logger.warning("decoding without the compiled step, two to three times slower: %s", broken)
        return None
    if layout != LAYOUT:
        logger.warning("decoding without the compiled step, two to three times slower: %s is of another version", path)
        return None
    return library


def available() -> bool:
    """Whether the compiled library exists and has the right version."""
    return library() is not None
