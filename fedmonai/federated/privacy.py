# SPDX-License-Identifier: Apache-2.0
"""Differential privacy of what leaves a site: a clipped and noised update, and a ledger of what was spent."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError, first_line
from fedmonai.federated.messages import attachments_of
from fedmonai.federated.run_log import write_text_atomic
from fedmonai.io import OutputPath
from fedmonai.seeding import derive_seed

__all__ = ["GaussianPrivacy", "spent_epsilon"]


class GaussianPrivacy:
    """Exchange filter: clips a site's update and adds Gaussian noise to it before it leaves.

    With received weights w and trained weights v the site sends (Geyer et al., 2017; McMahan et al., ICLR 2018; here
    the noise is added at the site, so that the server need not be trusted)::

        w + d * min(1, clip_norm / ||d||) + N(0, (noise_multiplier * clip_norm)^2),    d = v - w

    The norm is over all shared float tensors together. Any change to a site's data, one patient's or all, moves the
    clipped update by at most 2 * clip_norm; epsilon is accounted for that, with Renyi orders and without credit for
    sampling of sites. Accounts that compare an update with none at all give half the distance and a smaller epsilon.

    Covered are the shared float tensors. Counts, the mean loss and mean metrics leave a site as they are; integer
    buffers too. Updates with attachments (features, previous encoders) are refused, as they would pass without noise.
    Batch variances that noise has made negative are set to zero.

    The number of releases is kept in ``sites/<site>/privacy.json``, written before an update leaves and never turned
    back, so a round that is repeated after an interruption counts again. Noise comes from the operating system's
    randomness, hence two runs differ. With ``seed`` the noise repeats, for tests; whoever knows the seed can take it
    off again, and the ledger says so.

    Args:
        output_dir: folder of the run, as given to :class:`~fedmonai.federated.local_pool.LocalPool`.
        clip_norm: bound C on the Euclidean norm of an update; the median norm of unclipped updates is a usual start.
        noise_multiplier: standard deviation of the noise in units of ``clip_norm``.
        delta: probability that the guarantee fails; well below one over the number of patients.
        seed: for tests only.

    Raises:
        ConfigError: on values outside their ranges, or without the extra ``privacy``.
    """

    def __init__(
        self,
        output_dir: OutputPath,
        clip_norm: float = 1.0,
        noise_multiplier: float = 1.0,
        delta: float = 1e-5,
        seed: int | None = None,
    ) -> None:
        for name, value in (("clip_norm", clip_norm), ("noise_multiplier", noise_multiplier)):
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"privacy: {name} is {value}; give a positive number, or leave the filter out.")
        if not 0 < delta < 1:
            raise ConfigError(f"privacy: delta is {delta}; give a probability in (0, 1), such as 1e-5.")
        spent_epsilon([[noise_multiplier, 1]], delta)  # fails here, not in the first round
        self.output_dir = Path(output_dir)
        self.clip_norm, self.noise_multiplier, self.delta = float(clip_norm), float(noise_multiplier), float(delta)
        self.seed = seed

    def __call__(self, message: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        extra = extra or {}
        received = extra.get("received")
        if attachments_of(message):
            raise ConfigError(
                f"privacy: the update carries '{next(iter(attachments_of(message)))}', which would leave without "
                "noise; switch the attachment off or do without the filter."
            )
        if received is None or not message.weights:
            raise ConfigError("privacy: there is no update to protect; the filter needs a SiteAlgo that has trained.")
        site, number = str(extra["site"]), int(extra["round"])
        protected = self._protected(message.weights, received, site, number)
        history = self._enter(site)
        message.weights = {**message.weights, **protected}
        message.statistics = {
            **(message.statistics or {}),
            "privacy_epsilon": spent_epsilon(history, self.delta),
            "privacy_delta": self.delta,
            "privacy_noise_multiplier": self.noise_multiplier,
            "privacy_clip_norm": self.clip_norm,
            "privacy_seeded": int(self.seed is not None),
        }
        return message

    @torch.no_grad()
    def _protected(
        self, weights: Mapping[str, Tensor], received: Mapping[str, Tensor], site: str, number: int
    ) -> dict[str, Tensor]:
        keys = sorted(key for key, tensor in weights.items() if tensor.is_floating_point())
        steps = [weights[key] - received[key].to(weights[key].device) for key in keys]
        norm = math.sqrt(sum(float(step.double().square().sum()) for step in steps))
        if not math.isfinite(norm):
            raise FloatingPointError("the update holds NaN or infinite values, nothing is sent")
        # a hair below the bound, so that rounding does not put the norm above it
        scale = min(1.0, self.clip_norm / (norm * (1 + 1e-5))) if norm > 0 else 1.0
        generators: dict[torch.device, torch.Generator] = {}
        found = {}
        for key, step in zip(keys, steps, strict=True):
            if step.device not in generators:
                generators[step.device] = self._generator(step.device, site, number)
            noise = torch.empty_like(step).normal_(generator=generators[step.device])
            step.mul_(scale).add_(noise, alpha=self.noise_multiplier * self.clip_norm)
            found[key] = step.add_(received[key].to(step.device))
            if key.endswith("running_var"):
                found[key].clamp_(min=0.0)
        return found

    def _generator(self, device: torch.device, site: str, number: int) -> torch.Generator:
        seed = secrets.randbits(63) if self.seed is None else derive_seed(self.seed, "privacy", site, number)
        return torch.Generator(device).manual_seed(seed)

    def ledger(self, site: str) -> Path:
        """File that counts the releases of a site: ``history`` is a list of [noise multiplier, releases]."""
        return self.output_dir / "sites" / site / "privacy.json"

    def _enter(self, site: str) -> list[list[float]]:
        """Count one more release, on disk before the update leaves."""
        path = self.ledger(site)
        history = read_history(path)
        if history and history[-1][0] == self.noise_multiplier:
            history[-1][1] += 1
        else:
            history.append([self.noise_multiplier, 1])
        content = {"history": history, "delta": self.delta, "epsilon": spent_epsilon(history, self.delta)}
        content |= {"clip_norm": self.clip_norm, "seeded_noise_protects_nobody": self.seed is not None}
        write_text_atomic(json.dumps(content, indent=2) + "\n", path)
        return history


def read_history(path: Path) -> list[list[float]]:
    """The releases in a ledger, ``[[noise multiplier, count], ...]``; empty if there is none yet.

    Raises:
        ConfigError: when it cannot be read: what was spent is unknown then, so nothing more may leave.
    """
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["history"]
        history = [[float(noise), int(count)] for noise, count in entries]
        if not all(noise > 0 and count > 0 for noise, count in history):
            raise ValueError("noise and counts must be positive")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"privacy: the ledger '{path}' cannot be read ({first_line(error, 100)}), so nothing leaves this site; "
            "restore it, or start in another output_dir and add both ledgers up."
        ) from error
    return history


def spent_epsilon(history: list[list[float]], delta: float) -> float:
    """Epsilon after a history of releases, by opacus' accountant of Renyi differential privacy.

    A release with noise multiplier z against a change of twice the clipping norm is a Gaussian mechanism of z / 2.

    Raises:
        ConfigError: without opacus.
    """
    try:
        from opacus.accountants import RDPAccountant  # heavy, and only where privacy is asked for
    except ImportError as error:
        raise ConfigError(
            "privacy: the accountant is missing; install it with 'pip install fedmonai[privacy]'."
        ) from error
    accountant = RDPAccountant()
    accountant.history = [(noise / 2, 1.0, count) for noise, count in history]
    return float(accountant.get_epsilon(delta))
