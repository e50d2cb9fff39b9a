"""A plug-in of the engine that breaks the simulated device: a prompt that begins with one of these ids brings a fault
upon the step that computes it. The fault is real to all that is above the device."""

from __future__ import annotations

import time

from mini_infer.core.plan import DeviceLostError, StepPlan
from mini_infer.engine.loop import StepFailedError
from mini_infer.engine.sim import SimExecutor, SimPending

EXCEPTION, OUT_OF_MEMORY, SLOW_LAUNCH, HANG, DEVICE_LOST = 101, 102, 103, 104, 105
LAUNCH_SECONDS = 2.5
HANG_SECONDS = 2.5

submit = SimExecutor.submit


def faulty_submit(executor: SimExecutor, plan: StepPlan) -> SimPending:
    faults = {admitted.tokens[0] for admitted in plan.admitted}
    if EXCEPTION in faults:
        raise RuntimeError("no kernel at /opt/secret/kernel.so, 0x7f001234")
    if OUT_OF_MEMORY in faults:
        raise StepFailedError("out of GPU memory in a step")
    if DEVICE_LOST in faults:
        raise DeviceLostError("the GPU has failed")
    if SLOW_LAUNCH in faults:
        time.sleep(LAUNCH_SECONDS)
    pending = submit(executor, plan)
    if HANG in faults:
        pending.ends_at += HANG_SECONDS
    return pending


if __name__ != "tests.server.faults":  # loaded by the engine as a plug-in; the tests import it for the ids above
    SimExecutor.submit = faulty_submit  # type: ignore[method-assign]
