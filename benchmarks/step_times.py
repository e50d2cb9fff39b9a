"""A plug-in of a dry-run engine that writes down when each simulated step ended, for `benchmarks.front_cost`.

The file that MINI_INFER_STEP_TIMES names gets one little-endian float64 a step: seconds of `time.monotonic`.
"""

from __future__ import annotations

import os
import struct

from mini_infer.core.plan import StepResult
from mini_infer.engine.sim import SimPending

_file = open(os.environ["MINI_INFER_STEP_TIMES"], "wb", buffering=0)  # noqa: SIM115  # as long as the process
_result = SimPending.result


def result(pending: SimPending) -> StepResult:
    done = _result(pending)
    _file.write(struct.pack("<d", pending.ends_at))
    return done


SimPending.result = result  # type: ignore[method-assign]
