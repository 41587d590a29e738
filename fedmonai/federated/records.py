# SPDX-License-Identifier: Apache-2.0
"""What is written down of a round."""

from __future__ import annotations

import time
from typing import Any

from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.federated.message import message_bytes

__all__ = ["RoundRecord", "SiteFailure", "reason_of"]


class SiteFailure(RuntimeError):  # noqa: N818 (it is no error here, but the news of one elsewhere)
    """What stopped a site in another process, in its own words; or that it gave no answer."""


class RoundRecord:
    """Collects who took part in a round, who failed and why, and what crossed the wire.

    Args:
        number: the round, from 1.
        participants: the sites that were asked.
    """

    def __init__(self, number: int, participants: list[str]) -> None:
        self.number = number
        self.participants = participants
        self.started = time.perf_counter()
        self.failed: dict[str, str] = {}
        self.loss: dict[str, float] = {}
        self.train_metrics: dict[str, dict[str, float]] = {}
        self.num_samples: dict[str, int] = {}
        self.seconds_per_site: dict[str, float] = {}
        self.bytes_up: dict[str, dict[str, int]] = {}
        self.bytes_down: dict[str, dict[str, int]] = {}
        self.observers: list[str] = []
        self.attachments: dict[str, Any] = {}
        self.privacy: dict[str, dict[str, float]] = {}
        self.notes: list[str] = []

    def completed(self, site: str, update: ExchangeObject) -> None:
        """Note an accepted update."""
        statistics = update.statistics or {}
        self.loss[site] = float(statistics["loss"])
        for name, value in statistics.items():
            if name.startswith("train_"):
                self.train_metrics.setdefault(name.removeprefix("train_"), {})[site] = float(value)
        self.num_samples[site] = int(statistics["num_samples"])
        self.bytes_up[site] = message_bytes(update)
        spent = {k.removeprefix("privacy_"): v for k, v in statistics.items() if str(k).startswith("privacy_")}
        if spent:
            self.privacy[site] = {name: float(value) for name, value in spent.items()}

    def observed(self, site: str, update: ExchangeObject) -> None:
        """Note what a site contributed that did not train."""
        self.observers.append(site)
        self.bytes_up[site] = message_bytes(update)

    def fail(self, site: str, error: BaseException) -> None:
        """Note why a site is left out."""
        self.failed[site] = reason_of(error)

    def as_dict(self, **further: Any) -> dict[str, Any]:
        """One line of ``rounds.jsonl``."""
        return {
            "round": self.number,
            "participants": self.participants,
            "completed": sorted(self.loss),
            "observers": self.observers,
            "failed": self.failed,
            "seconds": time.perf_counter() - self.started,
            "seconds_per_site": self.seconds_per_site,
            "num_samples": self.num_samples,
            "loss": self.loss,
            "train_metrics": self.train_metrics,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "attachments": self.attachments,
            **({"privacy": self.privacy} if self.privacy else {}),
            "notes": self.notes,
            **further,
        }


def reason_of(error: BaseException) -> str:
    """Type and first line of an exception: enough to act on, short enough for a table."""
    lines = str(error).strip().splitlines() or ["no message"]
    if isinstance(error, SiteFailure):
        return lines[0][:400]
    return f"{type(error).__name__}: {lines[0][:300]}"
