# SPDX-License-Identifier: Apache-2.0
"""What an overlay of a bundle may set."""

from __future__ import annotations

__all__ = ["DATA_IDS", "FEDERATION_IDS"]

#: where data lie and which part of them is used
_SOURCE = {"dataset_dir", "data_list", "case_list", "image_dir", "mask_dir", "site", "domain", "sequence", "split"}
_SOURCE |= {
    "split_fractions",
    "val_fraction",
    "test_fraction",
    "subject_separator",
    "label_suffix",
    "annotation",
    "train_annotation",
}
_SOURCE |= {"folder", "layout", "train_split", "val_split", "test_split", "case_lists", "generated_dir"}
_CHOICE = {"slice_range", "sample_rate", "slices", "slice_selection", "labeled", "central_share", "context_slices"}
#: how an image is brought into the network's form
_GEOMETRY = {"resolution", "image_size", "size", "resize_mode", "spacing", "orientation", "crop_size", "pad_value"}
_INTENSITY = {"normalization", "intensity", "intensity_range", "value_range", "threshold", "inverted"}
#: what the images and labels are
_MEANING = {"image_key", "label_key", "keys", "modality"}
_MEANING |= {"image_channels", "in_channels", "out_channels", "num_channels", "num_classes", "classes", "class_names"}
_MEANING |= {"merge_labels", "label_map", "label_values", "ignore_index", "scribble_ids", "targets"}
_SAMPLING = {"mask_kind", "accelerations", "center_fractions", "density_power", "mask_file", "mask_seed"}

#: ids that an overlay in ``configs/data`` may set: how a data set is found, read and prepared, never how a network is
#: trained on it, so that two data sets under one method differ in nothing else
DATA_IDS = frozenset(_SOURCE | _CHOICE | _GEOMETRY | _INTENSITY | _MEANING | _SAMPLING)

#: ids that an overlay in ``configs/federation`` may add to those of ``federated.yaml``
FEDERATION_IDS = frozenset({"data_root"})
