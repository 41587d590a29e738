# SPDX-License-Identifier: Apache-2.0
"""Check of a site before it joins a federation: its data are found, readable, and fit for the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fedmonai.bundle.federation import job_plan
from fedmonai.bundle.ids import apply_overrides
from fedmonai.bundle.layers import read_layers
from fedmonai.data.provenance import changed_files, compare_splits
from fedmonai.errors import ConfigError, root_user_error
from fedmonai.federated.local_pool import LocalPool
from fedmonai.names import as_list

__all__ = ["Finding", "check_site", "format_findings"]


@dataclass
class Finding:
    """One line of the table: what was looked at, what was found, whether it will do, whether to look again."""

    what: str
    found: str
    good: bool = True
    warning: bool = False

    def __str__(self) -> str:
        return "FAIL" if not self.good else "WARN" if self.warning else "ok  "


def check_site(
    bundle: str | Path, site: str, config_file: Sequence[str] | str = ("configs/federated.yaml",), **ids: Any
) -> list[Finding]:
    """Build one site of a federation exactly as the federation would, read every split, and run one training batch.

    The splits may share no name, image data or subject, and the files must be those of their manifest, if there is one.
    Nothing is trained or written.

    Args:
        bundle: folder of the bundle.
        site: name of the site.
        config_file: federation config and overlays, relative to the bundle.
        ids: overrides such as ``local::batch_size``.

    Returns:
        the findings; one with ``good=False`` means that this site cannot take part.
    """
    findings: list[Finding] = []
    try:
        member = _build(Path(bundle), site, config_file, ids)
        findings.append(Finding("configuration", "known ids, components built"))
    except Exception as error:  # any failure is a line of the table
        return [Finding("configuration", _text(error), good=False)]
    loaders = _loaders(member)
    for split, loader in loaders:
        findings.append(_check_split(split, loader, member.evaluator))
    findings += _check_files(member, loaders)
    findings.append(_check_training_batch(member))
    return findings


def format_findings(site: str, findings: Sequence[Finding]) -> str:
    """The table as text."""
    width = max(len(f.what) for f in findings)
    lines = [f"{f}  {f.what:<{width}}  {f.found}" for f in findings]
    verdict = "can take part" if all(f.good for f in findings) else "cannot take part"
    return "\n".join([*lines, f"site '{site}' {verdict}"])


def _build(bundle: Path, site: str, config_file: Sequence[str] | str, ids: dict[str, Any]) -> Any:
    files = as_list(config_file)
    missing = [f for f in files if not (bundle / f).is_file()]
    if missing:
        raise ConfigError(f"config file '{missing[0]}' is not in the bundle folder '{bundle}'.")
    parser = read_layers([bundle / f for f in files])
    parser["bundle_root"] = str(bundle)
    apply_overrides(parser, ids)
    parser.get_parsed_content("check")
    plan = job_plan(parser.ref_resolver)
    plan.refuse_unknown(site)
    return LocalPool(plan).open(site)


def _loaders(member: Any) -> list[tuple[str, Any]]:
    parser = member.train_workflow.parser
    found: list[tuple[str, Any]] = [("train", member.trainer.data_loader)]
    if member.evaluator is not None:
        found.append(("val", member.evaluator.data_loader))
    if "test" in parser:
        try:
            found.append(("test", parser.get_parsed_content("test::dataloader")))
        except Exception as error:  # the other splits are still worth a look
            found.append(("test", error))
    return found


def _check_split(split: str, loader: Any, engine: Any) -> Finding:
    if isinstance(loader, Exception):
        return Finding(f"split {split}", _text(loader), good=False)
    volumes = getattr(loader.dataset, "data", None)
    count = f"{len(volumes)} volumes, " if volumes is not None else ""
    low, high, shapes, bad = float("inf"), -float("inf"), set(), 0
    try:
        for batch in tqdm(loader, desc=f"read {split}", unit="batch", leave=False, disable=None):
            image, _ = engine.prepare_batch(batch, "cpu")[:2]
            shapes.add(tuple(image.shape[1:]))
            bad += int((~torch.isfinite(image)).sum())
            low, high = min(low, float(image.min())), max(high, float(image.max()))
    except Exception as error:  # the reader names the file
        return Finding(f"split {split}", _text(error), good=False)
    text = f"{count}{len(loader.dataset)} samples, shapes {sorted(shapes)}, input range {low:.3g} to {high:.3g}"
    return Finding(f"split {split}", f"{text}, {bad} non-finite values" if bad else text, good=not bad)


def _check_files(member: Any, loaders: list[tuple[str, Any]]) -> list[Finding]:
    """Rows on overlap of the splits and on the manifest; none for data that tell nothing of themselves."""
    datasets = {split: loader.dataset for split, loader in loaders if not isinstance(loader, Exception)}
    findings = []
    try:
        splits = compare_splits(datasets)
        findings.append(Finding("splits", splits.found, warning=splits.warning))
    except Exception as error:
        findings.append(Finding("splits", _text(error), good=False))
    try:
        findings.append(Finding("manifest", changed_files(member.train_workflow.parser)))
    except Exception as error:
        findings.append(Finding("manifest", _text(error), good=False))
    return [f for f in findings if f.found]


def _check_training_batch(member: Any) -> Finding:
    trainer = member.trainer
    try:
        batch = next(iter(trainer.data_loader))
        image, label, *further = trainer.prepare_batch(batch, trainer.state.device, False)
        args, kwargs = further or ((), {})
        with torch.no_grad():
            pred = trainer.inferer(image, trainer.network, *args, **kwargs)
            loss: Tensor = trainer.loss_function(pred, label)
    except Exception as error:
        return Finding("one batch", _text(error), good=False)
    good = bool(torch.isfinite(loss).all())
    first = pred if isinstance(pred, Tensor) else pred[0]  # some networks give more in training
    return Finding("one batch", f"{tuple(image.shape)} -> {tuple(first.shape)}, loss {float(loss.mean()):.4g}", good)


def _text(error: BaseException) -> str:
    return str(root_user_error(error) or f"{type(error).__name__}: {error}")
