# SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m fedmonai.bundle check --site B``, ``... lint|ids|try bundles/fl_mr``.

As ``fedmonai-bundle lint .`` it imports nothing from the folder in which it is started; ``python -m`` looks there,
before any code of fedmonai is run.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from typing import Any

import fire

from fedmonai.bundle.digest import bundle_digest, bundle_files, verify_signature
from fedmonai.bundle.lint import lint_bundle
from fedmonai.bundle.lint_catalogue import used_lines
from fedmonai.errors import ConfigError
from fedmonai.names import as_list


def check(
    site: str, bundle: str = ".", config_file: str | list[str] | tuple[str, ...] = "configs/federated.yaml", **ids: Any
) -> None:
    """Check one site before it joins; exit code 1 if it cannot take part.

    Args:
        site: name of the site in the federation's config.
        bundle: folder of the bundle.
        config_file: federation config, or a list of it and its overlays, relative to the bundle.
        ids: overrides, as for ``python -m monai.bundle run``: ``--sites::B::dataset_dir /data/B``.
    """
    from fedmonai.bundle.site_check import check_site, format_findings  # torch, which the lint does without

    logging.disable(logging.WARNING)
    files = as_list(config_file)
    findings = check_site(bundle, str(site), files, **ids)
    print(format_findings(str(site), findings))
    sys.exit(0 if all(f.good for f in findings) else 1)


def lint(bundle: str = ".", allow: str | list[str] | tuple[str, ...] = (), catalogue: bool = False) -> None:
    """Check a bundle statically, without evaluating any of it: one line per finding, exit code 1 if there is one.

    Args:
        bundle: folder of the bundle.
        allow: packages of one's own whose classes and functions the configs may use: ``--allow my_lab``, or several
            with commas between them; sites admit them in their ``fedmonai.yaml``.
        catalogue: print every component, form of expression and id that the bundle uses, which is what a site reviews.
    """
    logging.disable(logging.WARNING)
    try:
        report = lint_bundle(str(bundle), allow)
        lines = used_lines(str(bundle)) if catalogue else []
    except ConfigError as error:
        sys.exit(f"error: {error}")
    for line in lines:
        print(line)
    for note in report.notes:
        print(f"note: {note}")
    for finding in report.findings:
        print(finding)
    print(
        f"{bundle}: {len(report.findings)} findings in {report.configs} configs with {report.components} components "
        f"and {report.expressions} expressions"
    )
    sys.exit(1 if report.findings else 0)


def try_bundle(
    bundle: str = ".",
    config_file: str | list[str] | tuple[str, ...] = "configs/federated.yaml",
    allow: str | list[str] | tuple[str, ...] = (),
    **ids: Any,
) -> None:
    """Check a bundle and the config that results from files and overrides, then run it; a finding stops it before that.

    Stock ``python -m monai.bundle run`` evaluates a config before any code of fedmonai sees it; this does not. The run
    imports nothing from the folder in which it is started.

    Args:
        bundle: folder of the bundle.
        config_file: file of the bundle, or a list of it and its overlays, relative to the bundle.
        allow: packages of one's own whose classes and functions the configs may use.
        ids: overrides, as for ``python -m monai.bundle run``; folders in them are this machine's own.
    """
    logging.disable(logging.WARNING)
    try:
        report = lint_bundle(str(bundle), allow)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if report.findings:
        sys.exit(f"error: {report.findings[0]} ({len(report.findings)} findings; see python -m fedmonai.bundle lint)")
    from fedmonai.bundle.lint_merged import run_gated  # torch, which the lint does without

    try:
        code = run_gated(str(bundle), as_list(config_file), ids, as_list(allow))
    except ConfigError as error:
        sys.exit(f"error: {error}")
    sys.exit(code)


def ids(bundle: str = ".", find: str = "", as_json: bool = False, page: bool = False) -> None:
    """List the ids of a bundle: default, allowed values, where they are read, meaning.

    Args:
        bundle: folder of the bundle.
        find: list only ids whose name or meaning holds this text.
        as_json: print JSON for programs.
        page: print the bundle's page ``docs/ids.md``.
    """
    from fedmonai.bundle.id_list import id_page, id_rows, id_text  # torch, which the lint does without

    try:
        rows = [row for part in (False, True) for row in id_rows(bundle, part)]
        text = id_page(bundle) if page else ""
    except ConfigError as error:
        sys.exit(f"error: {error}")
    chosen = [row for row in rows if find.lower() in f"{row['id']} {row['meaning']}".lower()]
    if not chosen:
        sys.exit(f"error: no id of '{bundle}' has '{find}' in its name or meaning.")
    print(text.rstrip() if page else json.dumps(chosen, indent=2) if as_json else id_text(chosen))


def digest(bundle: str = ".", files: bool = False) -> None:
    """Print the SHA-256 over all files of a bundle, which a site pins as ``bundle_digest`` in its ``fedmonai.yaml``.

    Args:
        bundle: folder of the bundle.
        files: print digest and path of every file instead, as ``sha256sum`` does.
    """
    try:
        lines = ["  ".join(entry) for entry in bundle_files(str(bundle))] if files else [bundle_digest(str(bundle))]
    except ConfigError as error:
        sys.exit(f"error: {error}")
    print("\n".join(lines))


def verify(archive: str, signers: str, identity: str, signature: str | None = None) -> None:
    """Check offline who signed a bundle's archive (OpenSSH's ``ssh-keygen -Y verify``), before it is unpacked.

    Args:
        archive: the file as it was received.
        signers: OpenSSH's list of allowed signers, which the site keeps.
        identity: who must have signed it, as named there.
        signature: the file of the signature; default the archive's name with ``.sig`` behind it.
    """
    try:
        print(verify_signature(str(archive), str(signers), str(identity), signature))
    except ConfigError as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """Run the command line."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a listing into `head` ends with it
    fire.Fire({"check": check, "digest": digest, "ids": ids, "lint": lint, "try": try_bundle, "verify": verify})


if __name__ == "__main__":
    main()
