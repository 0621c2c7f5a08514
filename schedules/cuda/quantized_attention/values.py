"""Weights of a part's tokens and the products of value codes with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.kv_quantization import QUAD
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.attention.softmax import power
from wattune.schedules.cuda.quantized_attention.codes import Codes
from wattune.schedules.cuda.quantized_attention.keys import Slot, four
from wattune.schedules.cuda.quantized_attention.place import Place
from wattune.schedules.cuda.quantized_attention.plan import PART, QuantizedPlan
from wattune.schedules.cuda.quantized_attention.softmax import WEIGHT_UNIT, State

Expr = Any
Buffer = Any

# The least scale that references take into account: below it weights stay below 2^15.
_LEAST = 2.0**-14


@dataclass(frozen=True)
class Scales:
    """Scales and zeros of a part's tokens: four octets for each group of value channels."""

    scales: tuple[Buffer, ...]
    zeros: tuple[Buffer, ...]
    logs: Buffer

    @classmethod
    def load(cls, plan: QuantizedPlan, slot: Slot, quad: Expr) -> Scales:
        """Load those of the quad in the lane's row; ``logs`` are log2 of the greatest scales."""
        pairs = [
            [four(slot, "v", 2 * group + row, QUAD * quad) for row in range(2)]
            for group in range(plan.cache.groups("v"))
        ]
        scales, zeros = zip(*pairs, strict=True)
        logs = ptx.registers(QUAD, "float32")
        for octet in range(QUAD):
            most = T.float32(_LEAST)
            for group in scales:
                most = T.max(most, group[octet])
            ptx.put(logs, octet, ptx.log2(most))
        return cls(scales, zeros, logs)


@dataclass(frozen=True)
class Values:
    """Emits weights and weighted sums of a part."""

    plan: QuantizedPlan
    place: Place
    codes: Codes

    @classmethod
    def declare(cls, plan: QuantizedPlan, place: Place) -> Values:
        """Declare registers."""
        return cls(plan, place, Codes.declare(plan.cache.bits))

    def weights(self, scores: list[Buffer], scales: Scales, state: State, into: Buffer) -> None:
        """Emit the right sides of a part's products from scores, whose references are up to date.

        ``into`` holds two words for each panel, group of channels and product.
        """
        plan = self.plan
        # The field that the lane's tokens are in decides what their codes are multiplied by.
        place = plan.cache.bits * (plan.value_fields - 1)
        factor = T.bind(
            T.Select(
                (self.place.row & 1) == 1,
                T.float32(WEIGHT_UNIT * 2.0**-place),
                T.float32(WEIGHT_UNIT),
            )
        )
        for panel, score in enumerate(scores):
            weights = ptx.registers(8, "float32")
            for i in range(8):
                octet, at = i // 2, 2 * panel + i % 2
                weight = power(score[i] - state.references[at], i, plan.polynomial)
                ptx.put(weights, i, weight)
                ptx.put(state.totals, at, state.totals[at] + weights[i])
                for group in range(plan.cache.groups("v")):
                    zero = state.zero(panel, group, i % 2)
                    term = weights[i] * scales.zeros[group][octet]
                    ptx.put(state.zeros, zero, state.zeros[zero] + term)
                ptx.put(weights, i, weights[i] * factor)
            for group in range(plan.cache.groups("v")):
                self._right(weights, scales.scales[group], panel, group, into)

    def _right(self, weights: Buffer, scales: Buffer, panel: int, group: int, into: Buffer) -> None:
        """Round weights times scales and bring them from the lanes of tokens to those of rows."""
        octets = ptx.registers(QUAD, "uint32")
        for octet in range(QUAD):
            low, high = (weights[2 * octet + i] * scales[octet] for i in range(2))
            ptx.pack(octets[octet], low, high, "float16")
            ptx.transpose(octets[octet], octets[octet])
        for row, selector in enumerate((0x5410, 0x7632)):
            for half in range(2):
                at = self._word(panel, group, row, half)
                ptx.permute_bytes(into[at], octets[half], octets[half + 2], T.uint32(selector))

    def _word(self, panel: int, group: int, product: int, half: int) -> int:
        return 4 * (panel * self.plan.cache.groups("v") + group) + 2 * product + half

    @property
    def right_words(self) -> int:
        """Return how many words `weights` fills."""
        return 4 * self.plan.panels * self.plan.cache.groups("v")

    def add(self, slot: Slot, part: Expr, right: Buffer, state: State) -> None:
        """Emit the weighted sums of a part of the tile."""
        plan = self.plan
        for word in range(2 // plan.value_fields):
            for load in range(plan.value_loads):
                self._load(slot, part, word, load)
                group = load * PART // plan.problem.group_size
                for field in range(plan.value_fields):
                    product = word * plan.value_fields + field
                    for pair in range(2):
                        left = self.codes.left(field, pair)
                        for panel in range(plan.panels):
                            words = [
                                right[self._word(panel, group, product, half)] for half in range(2)
                            ]
                            places = state.places(panel, load, pair)
                            ptx.multiply_add(places, left, words, "float16")

    def _load(self, slot: Slot, part: Expr, word: int, load: int) -> None:
        """Load the lane's words of 32 channels; `Copies` says where they lie."""
        plan, place = self.plan, self.place
        first = slot.at + plan.key_bytes
        if plan.cache.fields == plan.value_fields:
            number = part * plan.value_copies + word * plan.value_loads + load
            self.codes.load(slot.words, first, number, place.lane)
            return
        number = part * plan.value_copies + load // 2
        lane = place.row * 4 + (2 * (load % 2) + (place.column >> 1))
        self.codes.load(slot.words, first, number, lane, (place.column & 1) * (8 // 2))
