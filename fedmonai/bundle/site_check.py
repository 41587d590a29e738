# SPDX-License-Identifier: Apache-2.0
"""Check of a site before it joins a federation: its data are found, readable, and fit for the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fedmonai.bundle.federation import job_plan
from fedmonai.bundle.ids import apply_overrides
from fedmonai.bundle.layers import read_layers
from fedmonai.data.contact_sheet import ExampleSampler, example_titles, write_contact_sheet
from fedmonai.data.facts import SplitFacts, site_shifts
from fedmonai.data.provenance import changed_files, compare_splits
from fedmonai.errors import ConfigError, root_user_error
from fedmonai.federated.local_pool import LocalPool
from fedmonai.names import as_list

__all__ = ["Finding", "check_site", "format_findings", "site_names", "sites_table"]


@dataclass
class Finding:
    """One line of the table: what was looked at, what was found, whether it will do, whether to look again.

    ``facts`` belong to the row on a split that could be read.
    """

    what: str
    found: str
    good: bool = True
    warning: bool = False
    facts: SplitFacts | None = None

    def __str__(self) -> str:
        return "FAIL" if not self.good else "WARN" if self.warning else "ok  "


def check_site(
    bundle: str | Path,
    site: str,
    config_file: Sequence[str] | str = ("configs/federated.yaml",),
    sheet: str | Path | None = None,
    **ids: Any,
) -> list[Finding]:
    """Build one site of a federation exactly as the federation would, read every split, and run one training batch.

    The splits may share no name, image data or subject, and the files must be those of their manifest, if there is one.
    Of files and labels is said what they hold, with a warning where they are hardly meant so. Nothing is trained, and
    nothing written but the contact sheet.

    Args:
        bundle: folder of the bundle.
        site: name of the site.
        config_file: federation config and overlays, relative to the bundle.
        sheet: PNG file for a contact sheet of random slices with their labels.
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
    examples: dict[str, ExampleSampler] = {}
    for split, loader in loaders:
        examples[split] = ExampleSampler()
        findings += _check_split(split, loader, member.evaluator, examples[split])
    if sheet is not None and any(sampler.chosen for sampler in examples.values()):
        dataset = member.trainer.data_loader.dataset
        color, unlabeled = getattr(dataset, "image_channels", None) == 3, getattr(dataset, "num_classes", None)
        written = write_contact_sheet(examples, sheet, color, unlabeled)
        findings.append(Finding("contact sheet", f"{written}: look whether labels lie where they should"))
    findings += _check_files(member, loaders)
    findings.append(_check_training_batch(member))
    return findings


def format_findings(site: str, findings: Sequence[Finding]) -> str:
    """The table as text."""
    width = max(len(f.what) for f in findings)
    lines = [f"{f}  {f.what:<{width}}  {f.found}" for f in findings]
    verdict = "can take part" if all(f.good for f in findings) else "cannot take part"
    return "\n".join([*lines, f"site '{site}' {verdict}"])


def site_names(bundle: str | Path, config_file: Sequence[str] | str, **ids: Any) -> list[str]:
    """The sites of a federation.

    Raises:
        ConfigError: a config that cannot be read.
    """
    return list(_plan(Path(bundle), config_file, ids).sites)


def sites_table(checks: Mapping[str, Sequence[Finding]]) -> str:
    """One row per site and split, and how the training data of sites differ in what matters, as text."""
    lines = [f"{'':4}  {'site':<12} {'split':<6} {'volumes':>7}  files; labels"]
    training: dict[str, SplitFacts] = {}
    for site, findings in checks.items():
        worst = max(findings, key=lambda f: (not f.good, f.warning))
        rows = {f.what.removeprefix("split "): f.facts for f in findings if f.facts is not None}
        for split, facts in rows.items():
            text = "; ".join(part for part in (facts.file_text(), facts.label_text()) if part)
            lines.append(f"{worst}  {site:<12} {split:<6} {facts.volumes:>7}  {text}")
        if not rows:
            lines.append(f"{worst}  {site:<12} {'-':<6} {0:>7}  {worst.found}")
        if "train" in rows:
            weak = (
                rows["train"].unlabeled is not None and "val" in rows
            )  # kinds of annotation differ, full masks do not
            training[site] = (
                replace(rows["train"], pixels=rows["val"].pixels, unlabeled=None) if weak else rows["train"]
            )
    return "\n".join([*lines, *(f"differs: {shift}" for shift in site_shifts(training))])


def _build(bundle: Path, site: str, config_file: Sequence[str] | str, ids: dict[str, Any]) -> Any:
    plan = _plan(bundle, config_file, ids)
    plan.refuse_unknown(site)
    return LocalPool(plan).open(site)


def _plan(bundle: Path, config_file: Sequence[str] | str, ids: dict[str, Any]) -> Any:
    files = as_list(config_file)
    missing = [f for f in files if not (bundle / f).is_file()]
    if missing:
        raise ConfigError(f"config file '{missing[0]}' is not in the bundle folder '{bundle}'.")
    parser = read_layers([bundle / f for f in files])
    parser["bundle_root"] = str(bundle)
    apply_overrides(parser, ids)
    parser.get_parsed_content("check")
    return job_plan(parser.ref_resolver)


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


def _check_split(split: str, loader: Any, engine: Any, examples: ExampleSampler) -> list[Finding]:
    """Rows on the samples of a split, on its files, and on its labels."""
    if isinstance(loader, Exception):
        return [Finding(f"split {split}", _text(loader), good=False)]
    dataset = loader.dataset
    volumes = getattr(dataset, "data", None)
    count = f"{len(volumes)} volumes, " if volumes is not None else ""
    low, high, shapes, bad = float("inf"), -float("inf"), set(), 0
    classes = getattr(dataset, "num_classes", None)
    facts = SplitFacts(unlabeled=classes if split == "train" else None)
    names: set[str] = set()
    try:
        for batch in tqdm(loader, desc=f"read {split}", unit="batch", leave=False, disable=None):
            image, target = engine.prepare_batch(batch, "cpu")[:2]
            shapes.add(tuple(image.shape[1:]))
            bad += int((~torch.isfinite(image)).sum())
            low, high = min(low, float(image.min())), max(high, float(image.max()))
            _count_labels(batch, facts)
            batch_names = [str(name) for name in batch.get("volume", batch.get("file", [split] * len(image)))]
            names.update(batch_names)
            for number, title in enumerate(example_titles(batch_names, batch.get("slice"))):
                examples.add(title, image[number], None if target is None else target[number])
        facts.sizes = {(shape[-2], shape[-1]) for shape in shapes}
        facts.volumes = len(names)
        facts.files = list(dataset.file_facts()) if hasattr(dataset, "file_facts") else []
    except Exception as error:  # the reader names the file
        return [Finding(f"split {split}", _text(error), good=False)]
    text = f"{count}{len(dataset)} samples, shapes {sorted(shapes)}, input range {low:.3g} to {high:.3g}"
    text = f"{text}, {bad} non-finite values" if bad else text
    findings = [Finding(f"split {split}", text, good=not bad, facts=facts)]
    for what, said, warned in (
        (f"files {split}", facts.file_text() if facts.files else "", facts.file_warning()),
        (f"labels {split}", facts.label_text() if facts.pixels else "", facts.label_warning(classes)),
    ):
        if said:
            findings.append(Finding(what, f"{said}; {warned}" if warned else said, warning=bool(warned)))
    return findings


def _count_labels(batch: Any, facts: SplitFacts) -> None:
    label = batch.get("label") if isinstance(batch, Mapping) else None
    if isinstance(label, Tensor) and not label.is_floating_point():
        for value, count in zip(*(found.tolist() for found in label.unique(return_counts=True)), strict=True):
            facts.pixels[value] = facts.pixels.get(value, 0) + count


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
