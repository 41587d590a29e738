# SPDX-License-Identifier: Apache-2.0
"""Catalogue of the gate: which names, arguments and methods a bundle's configs may use. The rest is refused."""

from __future__ import annotations

from typing import Any

__all__ = [
    "ALLOWED",
    "ATTRIBUTES",
    "CALLABLE",
    "LOCATING_ARGUMENTS",
    "METHODS",
    "ORIGINS",
    "REFUSED",
    "RISKY_ARGUMENTS",
    "is_allowed",
    "is_within",
]


_TORCH = """
    Generator Size Tensor abs amax amin any all arange argmax argmin as_tensor bfloat16 bool cat ceil channels_last
    clamp complex128 complex64 contiguous_format cos cuda device double dtype empty exp eye finfo flip float float16
    float32 float64 floor full get_num_threads half inf int int16 int32 int64 int8 linspace log long manual_seed max
    mean median min nan norm ones ones_like permute pi preserve_format prod rand randint randn randperm relu round
    sigmoid sign sin softmax sqrt square squeeze stack std sum tanh tensor transpose uint8 unsqueeze var where zeros
    zeros_like
""".split()  # noqa: SIM905 (a list of this length is easier to read as text)
_DISTRIBUTED = ("barrier", "destroy_process_group", "get_rank", "get_world_size", "is_available", "is_initialized")
_CUDA = ("current_device", "device_count", "empty_cache", "is_available", "manual_seed", "manual_seed_all")

#: packages (and of large ones the parts) whose names a config may use; what is not listed downloads, loads code,
#: starts processes, unpickles, reads other configs, or has no business in the config of a bundle
ALLOWED = (
    *(f"fedmonai.{room}" for room in ("data", "federated", "handlers", "losses", "methods", "metrics", "networks")),
    *("fedmonai.transforms", "fedmonai.seeding.derive_seed"),
    *(
        "fedmonai.bundle.federation.build_federation",
        "fedmonai.bundle.live_config.check_config",
        "fedmonai.bundle.live_config.save_run_config",
        "fedmonai.report.page.finish",
    ),
    *(f"ignite.{room}" for room in ("distributed.sync", "engine", "handlers", "metrics")),
    *(f"monai.{room}" for room in ("data", "engines", "fl.utils", "handlers", "inferers", "losses", "metrics")),
    *(f"monai.{room}" for room in ("networks", "optimizers", "transforms", "utils.enums", "visualize")),
    *(f"torch.{room}" for room in ("amp", "distributions", "fft", "linalg", "nn", "optim", "random")),
    *(f"torch.backends.{room}" for room in ("cuda", "cudnn", "mps")),
    *(f"torch.{room}" for room in ("special", "utils.data")),
    *(f"torch.{name}" for name in _TORCH if name != "cuda"),
    *(f"torch.cuda.{name}" for name in (*_CUDA, "amp")),
    *(f"torch.distributed.{name}" for name in (*_DISTRIBUTED, "init_process_group")),
)
#: where classes and functions of the allowed parts may really come from, besides the allowed parts themselves
ORIGINS = (
    "fedmonai.bundle.federation.build_federation",
    *("fedmonai.bundle.live_config.check_config", "fedmonai.bundle.live_config.save_run_config"),
    *("fedmonai.report.page.finish", "ignite.distributed.utils.sync"),
    *("torch._C._fft", "torch._C._linalg", "torch._C._nn", "torch._C._special", "torch._VariableFunctionsClass"),
    *(f"torch.distributed.distributed_c10d.{name}" for name in (*_DISTRIBUTED, "init_process_group")),
)
#: names inside the allowed parts that are refused all the same
REFUSED = (
    "fedmonai.data.convert",
    "fedmonai.federated.run_log",
    "fedmonai.federated.site.SiteAlgo",  # reads configs
    *(f"ignite.handlers.{name}_logger" for name in ("clearml", "fbresearch", "mlflow", "neptune", "polyaxon")),
    *(f"ignite.handlers.{name}_logger" for name in ("visdom", "wandb")),  # these talk to servers
    "ignite.metrics.gan",  # downloads its network
    "monai.data.dataset.CSVDataset",  # reads from addresses
    "monai.data.iterable_dataset.CSVIterableDataset",
    "monai.data.csv_saver",  # this and the next four write texts under any name
    "monai.data.decathlon_datalist.create_cross_validation_datalist",
    "monai.handlers.classification_saver",
    "monai.transforms.io.array.WriteFileMapping",
    "monai.transforms.io.dictionary.WriteFileMappingd",
    "monai.data.torchscript_utils",
    "monai.data.video_dataset",  # opens cameras and addresses
    "monai.data.wsi_reader",
    *(f"monai.handlers.{name}" for name in ("clearml_handlers", "mlflow_handler", "trt_handler")),
    "monai.networks.layers.gmm",  # hands its arguments to a compiler
    "monai.networks.trt_compiler",
    "monai.networks.utils",
    "monai.networks.blocks.text_embedding",  # this and the next five download weights
    "monai.networks.nets.hovernet",
    "monai.networks.nets.resnet.get_pretrained_resnet_medicalnet",
    "monai.networks.nets.senet",
    "monai.networks.nets.torchvision_fc",
    "monai.networks.nets.transchex",
    "monai.networks.nets.flexible_unet.FlexUNetEncoderRegister",  # looks names up in any package
    "monai.networks.nets.FLEXUNET_BACKBONE",
    "monai.transforms.utils_create_transform_ims",
    "monai.losses.perceptual",  # downloads its network
    "monai.metrics.fid",
    "torch.cuda.memory",
    "torch.nn.parallel.data_parallel",
    "torch.utils.data.datapipes",
    "torch._VariableFunctionsClass.from_file",
)
#: what an expression may call by its name, and with how many arguments at most; the rest is called as a component,
#: whose arguments are checked one by one
CALLABLE = {f"torch.{name}": 9 for name in _TORCH if name not in {"Generator", "Size", "Tensor", "cuda"}}
CALLABLE |= {f"torch.cuda.{name}": 1 for name in _CUDA}
CALLABLE |= {f"torch.distributed.{name}": 0 for name in _DISTRIBUTED}
CALLABLE |= {"torch.distributed.init_process_group": 1}  # a second argument would be an address
CALLABLE |= {"fedmonai.seeding.derive_seed": 9, "monai.handlers.from_engine": 2}
#: attributes of what a reference stands for that an expression may read ...
ATTRIBUTES = set(
    """
    attachments_down attachments_up data_list dataset device domains dtype global_state is_column keys module names
    ndim network num_classes optimizer personal shape site sites state targets
    """.split()  # noqa: SIM905
)
#: ... and methods that it may call
METHODS = set(
    """
    cpu cuda endswith float item items keys long lower mean_of_personals named_parameters parameters prepare run
    set_random_state startswith state_dict to tolist train upper values without_transform
    """.split()  # noqa: SIM905
)
#: arguments that switch protection off or fetch something, and the values that are harmless
RISKY_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "allow_pickle": (False,),
    "download": (False,),
    "pretrained": (False, None),
    "pretrained_path": (None,),
    "pretrained_url": (None,),
    "trust_remote_code": (False,),
    "url": (None,),
    "use_pretrained": (False, None),
    "weights_only": (True,),
}
#: arguments that MONAI resolves to a class of any installed package when they are a dotted text, and the form of the
#: short names that are MONAI's own
LOCATING_ARGUMENTS = {
    "merger_cls": r"[A-Za-z]+Merger",
    "reader": r"[A-Za-z]+[Rr]eader",
    "writer": r"[A-Za-z]+[Ww]riter",
}


def is_allowed(name: str) -> bool:
    """Whether a dotted name lies in an allowed part of a package and is not refused."""
    return not is_within(name, REFUSED) and is_within(name, ALLOWED)


def is_within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of ``prefixes`` or stands below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
