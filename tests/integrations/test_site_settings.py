# SPDX-License-Identifier: Apache-2.0
"""``fedmonai.yaml``: one line for a mistake in it, and no mistake passes as 'nothing was set'."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import Request
from fedmonai.integrations.site_settings import SiteSettings
from fedmonai.integrations.worker import LocalSite


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset_dir: /data\n", "'dataset_dir' is unknown here"),
        ("5\n", "'5' is unknown here"),
        ("[1", "no readable YAML"),
        ("ids: {lr: 1\n", "no readable YAML"),
        ("ids: {a: 1}\nids: {lr: 2}\n", "line 1: the key 'ids' stands twice"),
        ("ids: {lr: 1, lr: 2}\n", "line 1: the key 'lr' stands twice"),
        ("ids:\n", "ids is empty; give ids with their values"),
        ("ids: [1]\n", r"ids is a list; give ids with their values"),
        ("ids: {5: 1}\n", "ids is "),
        ("ids: {overlay: configs/data/ixi.yaml}\n", "'overlay' is no id of train.json"),
        ("exchange_filters:\n", "exchange_filters is empty; give a list of components"),
        ("exchange_filters: foo\n", "exchange_filters is 'foo'; give a list of components"),
        ("exchange_filters: {_target_: fedmonai.federated.messages.KeepSharedKeys}\n", "exchange_filters is "),
        ("exchange_filters: [KeepSharedKeys]\n", "exchange_filters is "),
        ("exchange_filters: [{shared_keys: [a]}]\n", "exchange_filters is "),
        ("bundle: 5\n", "bundle is 5; give a folder"),
        ("state_dir: [x]\n", "state_dir is "),
        ("state_dir: ''\n", "state_dir is empty"),
        ("overlay: {a: 1}\n", "overlay is "),
        ("allow: 5\n", "allow: '5' is not a list of package names"),
        ("allow: [torch]\n", "allow: 'torch' is no package of your own"),
        ("allow: [my-lab]\n", "allow: 'my-lab' is not the name of a package"),
        ("overlay: [5]\n", "overlay is "),
        ("bundle: x\nbundle_digest: abc\n", "bundle_digest is 'abc'; give the 64 digits"),
        ("bundle: x\nbundle_digest: 5\n", "bundle_digest is 5; give the 64 digits"),
        (f"bundle_digest: {'0f' * 32}\n", "bundle_digest pins this machine's own copy"),
        ("max_shared: 5\n", r"max_shared is 5; give a list of names \(\[\] for none\)"),
        ("max_shared: ['(a+)+']\n", "max_shared: .* repeats a group"),
        ("attachments: {a: 1}\n", "attachments is a dict"),
        ("min_cases: 0\n", "min_cases is empty; give a whole number, 1 or more"),
        ("min_cases: true\n", "min_cases is True; give a whole number"),
        ("min_steps:\n", "min_steps is empty; give a whole number"),
        ("min_batch: 2.5\n", "min_batch is 2.5; give a whole number"),
        ("max_epsilon: .inf\n", "max_epsilon is inf; give a positive number"),
        ("max_epsilon: -1\n", "max_epsilon is -1; give a positive number"),
    ],
)
def test_mistakes(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fedmonai.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        SiteSettings.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_home_folder_and_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "fedmonai.yaml").write_text("state_dir: ~/state\nbundle: ~/bundles/fl_mr\noverlay: null\n")
    settings = SiteSettings.read("~/fedmonai.yaml", required=True)
    assert settings.state_dir == str(tmp_path / "state")
    assert settings.bundle == str(tmp_path / "bundles" / "fl_mr")
    assert settings.overlay is None and settings.ids == {} and settings.exchange_filters == []
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert SiteSettings.read(tmp_path / "empty.yaml") == SiteSettings()


def test_a_file_that_was_named_must_be_there(job: Path, tmp_path: Path) -> None:
    """As on Flower: with a mistyped path the site would take part without its own bundle, ids and privacy."""
    path = tmp_path / "fedmonai.yml"
    assert SiteSettings.read(path) == SiteSettings()
    with pytest.raises(ConfigError, match=r"fedmonai.yml: the settings of this machine are not there"):
        SiteSettings.read(path, required=True)
    site = LocalSite(job, "a", path, tmp_path, required=True)
    reply = site.answer(Request("join", "a", 0, None, {"state_round": 0}))
    assert reply.error is not None and "code settings" in reply.error
    assert "settings of this machine are not there" in (tmp_path / "fedmonai" / "errors.log").read_text()


def test_no_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "fedmonai.yaml").mkdir()
    with pytest.raises(ConfigError, match="or are no file"):
        SiteSettings.read(tmp_path / "fedmonai.yaml")
    (tmp_path / "other.yaml").symlink_to(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="or are no file"):
        SiteSettings.read(tmp_path / "other.yaml")
