"""An answer with its trace, and how large a picture is."""

import math
import struct

from dirl.report.trace import Answer

# One prompt token in the first block of 4; `\` and `[` are what markup and mathtext trip over.
ANSWER = Answer(
    prompt_text="2+2",
    tokens=["\\", "[", "$", "4", "]", "\n", "<|im_end|>", "x", " ", "y", "z"],
    step_map=[2, 1, 1, 1, 2, 3, 3, 1, 1, 1, 1],
    logprobs=[math.log(p) for p in (0.95, 0.6, 0.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)],
    response_length=7,
    block_size=4,
    first_block_offset=1,
)


def png_size(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])
