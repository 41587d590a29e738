# SPDX-License-Identifier: Apache-2.0
"""Commands on a bundle: ``check --site B``, ``lint|ids|try|digest bundles/fl_mr``, ``verify fl_mr.zip``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from fedmonai.bundle.digest import bundle_digest, bundle_files, verify_signature
from fedmonai.bundle.lint import lint_bundle
from fedmonai.bundle.lint_catalogue import used_lines
from fedmonai.errors import ConfigError
from fedmonai.names import as_list


def check(
    site: str | None = None,
    bundle: str = ".",
    config_file: str | list[str] | tuple[str, ...] = "configs/federated.yaml",
    sheet: str | None = None,
    allow: str | list[str] | tuple[str, ...] = (),
    **ids: Any,
) -> int:
    """Check one site before it joins, or all sites with a table over them; exit code 1 if one cannot take part.

    The bundle itself is checked first, as by ``try``: nothing in a bundle with findings is evaluated.

    Args:
        site: name of the site in the federation's config, or several with commas between them; default all.
        bundle: folder of the bundle.
        config_file: federation config, or a list of it and its overlays, relative to the bundle.
        sheet: PNG file for random slices of the site with their labels, to look at; with several sites one for each,
            ``<sheet>_<site>.png``.
        allow: your packages whose components the configs may use.
        ids: overrides, as for ``python -m monai.bundle run``: ``--sites::B::dataset_dir /data/B``.
    """
    from fedmonai.bundle.lint_merged import refuse_bundle
    from fedmonai.bundle.site_check import check_site, format_findings, site_names, sites_table  # torch, not for lint

    logging.disable(logging.WARNING)
    files = as_list(config_file)
    _refuse_findings(bundle, allow)
    refuse_bundle(Path(bundle).resolve(), [Path(bundle, file) for file in files], ids, as_list(allow))
    names = site_names(bundle, files, **ids) if site is None else [part.strip() for part in _text(site).split(",")]
    checks = {}
    for name in names:
        own = sheet if sheet is None or len(names) == 1 else str(Path(sheet).with_suffix("")) + f"_{name}.png"
        checks[name] = check_site(bundle, name, files, own, **ids)
        print(format_findings(name, checks[name]))
    if len(names) > 1:
        print(sites_table(checks))
    return 0 if all(f.good for findings in checks.values() for f in findings) else 1


def _refuse_findings(bundle: str, allow: str | list[str] | tuple[str, ...]) -> None:
    report = lint_bundle(bundle, allow)
    if report.findings:
        raise ConfigError(f"{report.findings[0]} ({len(report.findings)} findings; see fedmonai lint)")


def _text(site: Any) -> str:
    """Names as typed: fire makes a tuple of ``A,B`` and a number of ``1``."""
    return ",".join(map(str, site)) if isinstance(site, (list, tuple)) else str(site)


def lint(bundle: str = ".", allow: str | list[str] | tuple[str, ...] = (), catalogue: bool = False) -> int:
    """Check a bundle statically, without evaluating any of it: one line per finding, exit code 1 if there is one.

    Args:
        bundle: folder of the bundle.
        allow: your packages whose classes and functions the configs may use: ``--allow my_lab``, or several
            with commas between them; sites admit them in their ``fedmonai.yaml``.
        catalogue: print every component, form of expression and id that the bundle uses, which is what a site reviews.
    """
    logging.disable(logging.WARNING)
    report = lint_bundle(str(bundle), allow)
    for line in used_lines(str(bundle)) if catalogue else []:
        print(line)
    for note in report.notes:
        print(f"note: {note}")
    for finding in report.findings:
        print(finding)
    print(
        f"{bundle}: {len(report.findings)} findings in {report.configs} configs with {report.components} components "
        f"and {report.expressions} expressions"
    )
    return 1 if report.findings else 0


def try_bundle(
    bundle: str = ".",
    config_file: str | list[str] | tuple[str, ...] = "configs/federated.yaml",
    allow: str | list[str] | tuple[str, ...] = (),
    **ids: Any,
) -> int:
    """Check a bundle and the config that results from files and overrides, then run it; a finding stops it before that.

    Stock ``python -m monai.bundle run`` evaluates a config before any code of fedmonai sees it; this does not. The run
    imports nothing from the folder in which it is started.

    Args:
        bundle: folder of the bundle.
        config_file: file of the bundle, or a list of it and its overlays, relative to the bundle.
        allow: your packages whose classes and functions the configs may use.
        ids: overrides, as for ``python -m monai.bundle run``; folders in them are those of this machine.
    """
    logging.disable(logging.WARNING)
    _refuse_findings(str(bundle), allow)
    from fedmonai.bundle.lint_merged import run_gated  # imports torch; not for lint

    return run_gated(str(bundle), as_list(config_file), ids, as_list(allow))


def ids(bundle: str = ".", find: str = "", as_json: bool = False, page: bool = False) -> str:
    """List the ids of a bundle: default, allowed values, where they are read, meaning.

    Args:
        bundle: folder of the bundle.
        find: list only ids whose name or meaning holds this text.
        as_json: print JSON for programs.
        page: print the bundle's page ``docs/ids.md``.
    """
    from fedmonai.bundle.id_list import id_page, id_rows, id_text  # imports torch; not for lint

    if page:
        return id_page(bundle).rstrip()
    rows = [row for part in (False, True) for row in id_rows(bundle, part)]
    chosen = [row for row in rows if find.lower() in f"{row['id']} {row['meaning']}".lower()]
    if not chosen:
        raise ConfigError(f"no id of '{bundle}' has '{find}' in its name or meaning.")
    return json.dumps(chosen, indent=2) if as_json else id_text(chosen)


def digest(bundle: str = ".", files: bool = False) -> list[str]:
    """Print the SHA-256 over all files of a bundle, which a site pins as ``bundle_digest`` in its ``fedmonai.yaml``.

    Args:
        bundle: folder of the bundle.
        files: print digest and path of every file instead, as ``sha256sum`` does.
    """
    return ["  ".join(entry) for entry in bundle_files(str(bundle))] if files else [bundle_digest(str(bundle))]


def verify(archive: str, signers: str, identity: str, signature: str | None = None) -> str:
    """Check offline who signed a bundle's archive (OpenSSH's ``ssh-keygen -Y verify``), before it is unpacked.

    Args:
        archive: the file as it was received.
        signers: OpenSSH's list of allowed signers, which the site keeps.
        identity: who must have signed it, as named in that list.
        signature: the file of the signature; default the archive's name with ``.sig`` at the end.
    """
    return verify_signature(str(archive), str(signers), str(identity), signature)
