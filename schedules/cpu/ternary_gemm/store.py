"""Store sums as y: the last phase of every ternary GEMM kernel.

y[t, n] = (sum[t, n] - sum(q[t, :])) * weight_scale[n] * (1 / s[t])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.ternary_gemm import TernaryGemm
from wattune.schedules.cpu import vector
from wattune.schedules.cpu.ternary_gemm.workspace import Workspace

Expr = Any
Buffer = Any
LANES = vector.LANES


@dataclass(frozen=True)
class Storer:
    """Emits the store of 16 rows of one token."""

    problem: TernaryGemm
    workspace: Workspace

    def emit(
        self,
        sums: Expr,
        work: Buffer,
        weight_scale: Buffer | None,
        y: Buffer,
        token: Expr,
        row: Expr,
        offset: bool = True,
    ) -> None:
        """Emit the store of ``sums`` (int32x16); ``offset`` subtracts sum(q), for codes w + 1.

        Rows beyond ``out_features`` are dropped.
        """
        n = self.problem.out_features
        if offset:
            total = vector.load_as(work, self.workspace.sums + 4 * token, "int32")
            sums = sums - vector.splat(total)
        if n % LANES == 0:
            with T.If(row + LANES <= n), T.Then():
                vector.store(y, [token, row], self._scaled(sums, work, weight_scale, token, row))
            return
        with T.If(row + LANES <= n):
            with T.Then():
                vector.store(y, [token, row], self._scaled(sums, work, weight_scale, token, row))
            with T.Else():
                tail = vector.array(LANES, "int32")
                vector.store(tail, [0], sums)
                with T.serial(LANES) as i, T.If(row + i < n), T.Then():
                    vector.store(
                        y,
                        [token, row + i],
                        self._scaled_one(tail[i], work, weight_scale, token, row + i),
                    )

    def _scaled(
        self, sums: Expr, work: Buffer, weight_scale: Buffer | None, token: Expr, row: Expr
    ) -> Expr:
        if weight_scale is None:
            return sums
        reciprocal = vector.load_as(work, self.workspace.scales + 4 * token, "float32")
        if self.problem.scale == "tensor":
            factor = vector.splat(weight_scale[0] * reciprocal)
        else:
            factor = weight_scale.vload([row], f"float32x{LANES}") * vector.splat(reciprocal)
        scaled = T.cast(sums, f"float32x{LANES}") * factor
        return T.cast(scaled, f"{self.problem.out_dtype}x{LANES}")

    def _scaled_one(
        self, total: Expr, work: Buffer, weight_scale: Buffer | None, token: Expr, row: Expr
    ) -> Expr:
        if weight_scale is None:
            return total
        reciprocal = vector.load_as(work, self.workspace.scales + 4 * token, "float32")
        scale = weight_scale[0 if self.problem.scale == "tensor" else row]
        return T.cast(T.cast(total, "float32") * (scale * reciprocal), self.problem.out_dtype)
