# SPDX-License-Identifier: Apache-2.0
"""Differential privacy of what leaves a site: a clipped and noised update, and a ledger of what was spent."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError, first_line
from fedmonai.federated.messages import attachments_of
from fedmonai.federated.run_log import write_text_atomic
from fedmonai.io import OutputPath
from fedmonai.seeding import derive_seed

__all__ = ["UNBOUNDED", "GaussianPrivacy", "note_release", "read_history", "spent_epsilon"]

#: epsilon of a site from which an update has left without noise
UNBOUNDED = "unbounded"
#: values of noise drawn at a time, from 16 MB of random bytes
_DRAWN_TOGETHER = 1 << 21


class GaussianPrivacy:
    """Exchange filter: clips a site's update and adds Gaussian noise to it before it leaves.

    With received weights w and trained weights v the site sends (Geyer et al., 2017; McMahan et al., ICLR 2018; here
    the noise is added at the site, so that the server need not be trusted)::

        w + d * min(1, clip_norm / ||d||) + N(0, (noise_multiplier * clip_norm)^2),    d = v - w

    The norm is over all shared float tensors together. Any change to a site's data, one patient's or all, moves the
    clipped update by at most 2 * clip_norm; epsilon is accounted for that, with Renyi orders and without credit for
    sampling of sites. Accounts that compare an update with none at all give half the distance and a smaller epsilon.

    Covered are the shared float and complex tensors. Counts, the mean loss and mean metrics leave a site as they are;
    single integers (counters of batches) too. Updates with attachments (features, previous encoders) and integer
    tensors that have changed are refused, as they would pass without noise. Batch variances that noise has made
    negative are set to zero.

    The number of releases is kept in ``sites/<site>/privacy.json``, written before an update leaves and never reset, so
    a round that is repeated after an interruption counts again. A site from which an update has left without noise
    (:func:`note_release`) has no bounded epsilon any more: ledger, round record and report say "unbounded". Noise comes
    from the operating system's randomness, hence two runs differ. With ``seed`` the noise repeats, for tests; anyone
    who knows the seed can subtract it, which the ledger notes.

    Args:
        output_dir: folder of the run, as given to :class:`~fedmonai.federated.local_pool.LocalPool`.
        clip_norm: bound C on the Euclidean norm of an update; the median norm of unclipped updates is a usual start.
        noise_multiplier: standard deviation of the noise in units of ``clip_norm``.
        delta: probability that the guarantee fails; well below one over the number of patients.
        seed: for tests only.
        max_epsilon: the site stops training when one more release would spend more than this; ``None`` for no bound.

    Raises:
        ConfigError: on values outside their ranges, or without the extra ``privacy``.
    """

    #: in a site's folder: its releases, and since when updates without noise have left
    LEDGER, UNPROTECTED = "privacy.json", "unprotected.json"

    def __init__(
        self,
        output_dir: OutputPath,
        clip_norm: float = 1.0,
        noise_multiplier: float = 1.0,
        delta: float = 1e-5,
        seed: int | None = None,
        max_epsilon: float | None = None,
    ) -> None:
        for name, value in (("clip_norm", clip_norm), ("noise_multiplier", noise_multiplier)):
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"privacy: {name} is {value}; give a positive number, or leave the filter out.")
        if not 0 < delta < 1:
            raise ConfigError(f"privacy: delta is {delta}; give a probability in (0, 1), such as 1e-5.")
        if max_epsilon is not None and not max_epsilon > 0:
            raise ConfigError(f"privacy: max_epsilon is {max_epsilon}; give a positive number, or null for no bound.")
        spent_epsilon([[noise_multiplier, 1]], delta)  # fails here, not in the first round
        self.output_dir = Path(output_dir)
        self.clip_norm, self.noise_multiplier, self.delta = float(clip_norm), float(noise_multiplier), float(delta)
        self.seed, self.max_epsilon = seed, max_epsilon

    def check_budget(self, site: str) -> None:
        """Refuse a local training after which an update would spend more than ``max_epsilon``.

        Raises:
            ConfigError: with what it would spend.
        """
        epsilon = self._epsilon(site, self._with_one_more(site))
        if self.max_epsilon is not None and (epsilon == UNBOUNDED or epsilon > self.max_epsilon):
            said = epsilon if epsilon == UNBOUNDED else f"{epsilon:.4g}"
            raise ConfigError(
                f"privacy: max_epsilon is {self.max_epsilon:g}, after this round epsilon would be {said}; the site "
                "trains no more in this run."
            )

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
        self.check_budget(site)
        protected = self._protected(message.weights, received, site, number)
        epsilon = self._enter(site)
        message.weights = {**message.weights, **protected}
        message.statistics = {
            **(message.statistics or {}),
            "privacy_epsilon": epsilon,
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
        for key, tensor in weights.items():
            if not _is_noisy(tensor) and tensor.numel() > 1 and not torch.equal(tensor.cpu(), received[key].cpu()):
                raise ConfigError(
                    f"privacy: '{key}' ({tensor.dtype}) has changed and would leave without noise; keep it at the site "
                    "with local_keys."
                )
        keys = sorted(key for key, tensor in weights.items() if _is_noisy(tensor))
        # a complex number is two real ones
        steps = [_as_real(weights[key] - received[key].to(weights[key].device)) for key in keys]
        norm = math.sqrt(sum(float(step.double().square().sum()) for step in steps))
        if not math.isfinite(norm):
            raise FloatingPointError("the update holds NaN or infinite values, nothing is sent")
        # slightly below the bound, so that rounding does not put the norm above it
        scale = min(1.0, self.clip_norm / (norm * (1 + 1e-5))) if norm > 0 else 1.0
        generators: dict[torch.device, torch.Generator] = {}
        found = {}
        for key, step in zip(keys, steps, strict=True):
            if self.seed is not None and step.device not in generators:
                seed = derive_seed(self.seed, "privacy", site, number)
                generators[step.device] = torch.Generator(step.device).manual_seed(seed)
            generator = generators.get(step.device)
            noise = _secret_noise(step) if generator is None else torch.empty_like(step).normal_(generator=generator)
            step.mul_(scale).add_(noise, alpha=self.noise_multiplier * self.clip_norm)
            step.add_(_as_real(received[key].to(step.device)))
            found[key] = torch.view_as_complex(step) if weights[key].is_complex() else step
            if key.endswith("running_var") and not weights[key].is_complex():
                found[key].clamp_(min=0.0)
        return found

    def ledger(self, site: str) -> Path:
        """File that counts the releases of a site: ``history`` is a list of [noise multiplier, releases]."""
        return self.output_dir / "sites" / site / self.LEDGER

    def _with_one_more(self, site: str) -> list[list[float]]:
        """The history of the ledger after one more release."""
        history = read_history(self.ledger(site))
        if history and history[-1][0] == self.noise_multiplier:
            history[-1][1] += 1
        else:
            history.append([self.noise_multiplier, 1])
        return history

    def _epsilon(self, site: str, history: list[list[float]]) -> Any:
        unprotected = self.ledger(site).with_name(self.UNPROTECTED).exists()
        return UNBOUNDED if unprotected else spent_epsilon(history, self.delta)

    def _enter(self, site: str) -> Any:
        """Count one more release, on disk before the update leaves; return the epsilon after it."""
        history = self._with_one_more(site)
        content = {"history": history, "delta": self.delta, "epsilon": self._epsilon(site, history)}
        content |= {"clip_norm": self.clip_norm, "seeded_noise_protects_nobody": self.seed is not None}
        write_text_atomic(json.dumps(content, indent=2) + "\n", self.ledger(site))
        return content["epsilon"]


def _is_noisy(tensor: Tensor) -> bool:
    """Whether noise is added to a tensor of this type."""
    return tensor.is_floating_point() or tensor.is_complex()


def _secret_noise(like: Tensor) -> Tensor:
    """Standard normal values in the shape of a tensor, made from the system's random bytes (Box and Muller, 1958).

    A generator of torch would not do: on a CPU it is seeded with 32 bits. Anyone who knows one value of the noise, from
    a weight that did not change, can try all seeds; and later values follow from earlier ones.
    """
    noise = torch.empty(like.numel(), dtype=like.dtype)
    for part in noise.split(_DRAWN_TOGETHER) if len(noise) else ():
        pairs = -(-len(part) // 2)
        bits = torch.frombuffer(bytearray(secrets.token_bytes(16 * pairs)), dtype=torch.int64)
        uniform = ((bits >> 11) & ((1 << 53) - 1)).add_(1).double().mul_(2.0**-53)  # in (0, 1]
        radius, angle = uniform[:pairs].log_().mul_(-2).sqrt_(), uniform[pairs:].mul_(2 * math.pi)
        part.copy_(torch.cat([radius * angle.cos(), radius * angle.sin()])[: len(part)])
    return noise.view(like.shape).to(like.device)


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def note_release(folder: Path, message: ExchangeObject) -> None:
    """Note beside a site's ledger that an update leaves without noise; called before every update leaves.

    It stays there however the run ends: no filter of a later round can protect what has left.

    Args:
        folder: the site's folder.
        message: the update as it leaves.
    """
    statistics = message.statistics or {}
    path = folder / GaussianPrivacy.UNPROTECTED
    if "privacy_epsilon" not in statistics and (message.weights or attachments_of(message)) and not path.exists():
        write_text_atomic(json.dumps({"since_round": int(statistics.get("round", 0))}) + "\n", path)


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
