# SPDX-License-Identifier: Apache-2.0
"""Table of attacks by overlays of a federation: those of the reviews, and the nearest that the catalogue still has."""

from __future__ import annotations

from typing import Any

COMMAND = {"hidden": "xos.system", "command": "touch marker"}


def computed_ids() -> dict[str, Any]:
    """A1: transforms make ``loss::_target_`` an id of a site, and a slice makes ``os.system`` its value."""
    data = [{"loss::command": "@command", "latent_layer": "$@hidden[1:]"}]
    transform = {"_target_": "monai.transforms.CopyItemsd", "keys": ["latent_layer"], "names": ["loss::_target_"]}
    made = {"_target_": "monai.data.Dataset", "data": data, "transform": transform}
    return {**COMMAND, "made": made, "federation::sites": "@made"}


def computed_ids_inside() -> dict[str, Any]:
    """A1 with what the catalogue still has: attach() hands on a mapping."""
    handed = {"_target_": "fedmonai.federated.federation.attach", "engine": "@evil", "handlers": []}
    return {**COMMAND, "evil": {"B": {"loss::command": "@command"}}, "handed": handed, "federation::sites": "@handed"}


def module_beside_the_configs() -> dict[str, Any]:
    """A3: a log file named as a package that is not installed, and a transform that imports it."""
    log = {"_target_": "monai.handlers.LogfileHandler", "output_dir": ".", "filename": "torchio.py"}
    return {"handlers": [log, {"_target_": "monai.transforms.TorchIO", "name": "x"}]}


def module_by_a_saver() -> dict[str, Any]:
    """A3 with what the catalogue still has."""
    saver = {"_target_": "monai.handlers.CheckpointSaver", "save_dir": "@bundle_root", "save_dict": {}}
    return {"handlers": [{**saver, "save_final": True, "final_filename": "torchio.py"}]}


def settings_of_the_site() -> dict[str, Any]:
    """A6: the site's own fedmonai.yaml is overwritten, whose filters the next job builds."""
    return {
        "handlers": [{"_target_": "fedmonai.io.write_json", "content": {}, "path": "$@at[1:]"}],
        "at": "x/fedmonai.yaml",
    }


def settings_by_the_record() -> dict[str, Any]:
    """A6 with what the catalogue still has."""
    record = {"_target_": "fedmonai.bundle.live_config.save_run_config", "output_dir": "@bundle_root"}
    return {"handlers": [{**record, "name": "fedmonai.yaml"}]}


def address_of_a_board() -> dict[str, Any]:
    """A5, A5b, A5c: TensorBoard takes addresses of fsspec."""
    board = {
        "_target_": "monai.handlers.TensorBoardStatsHandler",
        "log_dir": "$'ftp:' + '/' + '/127.0.0.1:9/' + @method",
    }
    return {"handlers": [board]}


def address_behind_a_folder() -> dict[str, Any]:
    """A5 with what the catalogue still has: the scheme is another id."""
    board = {"_target_": "monai.handlers.TensorBoardStatsHandler", "log_dir": "$@scheme + @rest"}
    return {"scheme": "ftp:", "rest": "/127.0.0.1:9/x", "handlers": [board]}


def pictures_of_training() -> dict[str, Any]:
    """A5c: the handler itself."""
    return {"handlers": [{"_target_": "monai.handlers.TensorBoardImageHandler", "log_dir": "@output_dir"}]}


def entries_by_hand() -> dict[str, Any]:
    """Files of the site's own folder, as entries of a data set."""
    dataset = {"_target_": "fedmonai.data.kspace.dataset.KspaceDataset", "data": [{"kspace": "startup/client.key"}]}
    return {"handlers": [dataset]}


def state_written_over() -> dict[str, Any]:
    """The state from which the run continues, by a component of its own."""
    saver = {"_target_": "monai.handlers.CheckpointSaver", "save_dir": "@output_dir", "save_dict": {"x": "@strategy"}}
    return {"handlers": [{**saver, "save_final": True, "final_filename": "federation.pt"}]}


def board_where_it_runs() -> dict[str, Any]:
    """A component of another package that writes beside where the process runs if nobody says where."""
    return {"handlers": [{"_target_": "monai.handlers.TensorBoardStatsHandler", "tag_name": "x"}]}


ATTACKS = [
    computed_ids,
    computed_ids_inside,
    module_beside_the_configs,
    module_by_a_saver,
    settings_of_the_site,
    settings_by_the_record,
    address_of_a_board,
    address_behind_a_folder,
    pictures_of_training,
    entries_by_hand,
    state_written_over,
    board_where_it_runs,
]
