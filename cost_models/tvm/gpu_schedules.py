"""Schedules of GPU functions: TVM's default rules (dlight), and one of our own for windows."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule, dlight
from tvm.target import Target
from tvm.tirx import PrimFunc

from cost_models.errors import CostError
from search_spaces.kernels import Kernel, KernelKind

_THREADS = 128


class WindowRule(dlight.base.ScheduleRule):  # type: ignore[misc]
    """One thread an output: TVM's rules give a sum over a small window a whole block, or a launch of its own."""

    def apply(self, func: PrimFunc, target: Target, tunable: bool) -> Schedule | None:
        """Schedule a function with one sum, padding in front of it and an epilogue behind it."""
        del target, tunable
        schedule = Schedule(func)
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        kinds = [[axis.iter_type for axis in schedule.get(block).iter_vars] for block in blocks]
        sums = [index for index, types in enumerate(kinds) if tirx.IterVar.CommReduce in types]
        if len(sums) != 1:
            return None
        product, out = blocks[sums[0]], blocks[-1]
        for index, block in enumerate(blocks[:-1]):
            if index != sums[0]:
                schedule.compute_inline(block)
        spatial = kinds[sums[0]].count(tirx.IterVar.DataPar)
        block, thread = schedule.split(schedule.fuse(*schedule.get_loops(product)[:spatial]), [None, _THREADS])
        schedule.bind(block, "blockIdx.x")
        schedule.bind(thread, "threadIdx.x")
        if sums[0] < len(blocks) - 1:
            schedule.reverse_compute_at(out, thread)
            schedule.set_scope(product, 0, "local")
        schedule.decompose_reduction(product, schedule.get_loops(product)[2])
        return schedule


_RULES = (
    dlight.gpu.Matmul,
    dlight.gpu.GEMV,
    dlight.gpu.Reduction,
    dlight.gpu.GeneralReduction,
    dlight.gpu.Transpose,
    dlight.gpu.Fallback,
)


def schedule_for_gpu(function: PrimFunc, name: str, kernel: Kernel, target: Target) -> IRModule:
    """A module with the function scheduled by the first rule that takes it."""
    module = IRModule({name: function.with_attr("global_symbol", name)})
    windows = kernel.kind is KernelKind.DEPTHWISE_CONV or (kernel.kind is KernelKind.POOLING and kernel.m > 1)
    with target:
        for rule in (WindowRule, *_RULES) if windows else _RULES:
            try:
                scheduled = dlight.ApplyDefaultSchedule(rule())(module)
            except Exception:  # noqa: S112 - a rule that stumbles over a shape leaves it to the next
                continue
            if all(int(found.attrs.get("tirx.is_scheduled", 0)) for found in scheduled.functions.values()):
                return scheduled
    raise CostError(f"{kernel}: none of the GPU schedules takes it")
