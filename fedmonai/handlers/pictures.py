# SPDX-License-Identifier: Apache-2.0
"""Handlers that keep an example slice and latent features for figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.io import OutputPath, atomic_path
from fedmonai.networks.reconstruction_unet import pooled_latent

__all__ = ["ExampleSlice", "SaveLatents"]


class ExampleSlice:
    """Example slice: the middle one of the first test volume, as ``examples/example.npz`` in the site's own folder.

    It acts in the final test of a federation only (``engine.state.split == "test"``), and not for reference methods;
    the last model tested is the one that stays. The images never leave the site's folder.

    Args:
        output_dir: folder of the site.
        names: name in the file for each of ``image``, ``pred`` and ``label`` of the engine's output.
        image_channel: the channel of ``image`` that is kept; 1 is the slice itself where its neighbors surround it.
        classes: ``pred`` holds one channel of logits per class: keep the number of the largest.
    """

    def __init__(
        self,
        output_dir: OutputPath,
        names: tuple[str, str, str] | list[str] = ("zero_filled", "reconstruction", "target"),
        image_channel: int = 0,
        classes: bool = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.names = dict(zip(("image", "pred", "label"), names, strict=True))
        self.image_channel = image_channel
        self.classes = classes
        self._begin()

    def _begin(self) -> None:
        self._volume: str | None = None
        self._middle = 0
        self._kept: dict[str, np.ndarray] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        if getattr(state, "split", None) != "test" or state.reference is not None or state.output.get("label") is None:
            return
        slices, counts = state.batch["slice"], state.batch["num_slices"]
        for index, volume in enumerate(state.batch["volume"]):
            if self._volume is None:
                self._volume, self._middle = volume, int(slices[index]) + int(counts[index]) // 2
            if volume == self._volume and int(slices[index]) <= self._middle:
                self._kept = {name: self._plane(key, state.output[key][index]) for key, name in self.names.items()}

    def _plane(self, key: str, tensor: Tensor) -> np.ndarray:
        """What is shown of an image, a prediction or a label, as a 2-D float32 array."""
        if key == "pred" and self.classes:
            tensor = tensor.argmax(dim=0, keepdim=True)
        chosen = self.image_channel if key == "image" else 0
        return tensor.detach()[chosen].float().cpu().numpy()

    def _write(self, engine: Engine) -> None:
        if not self._kept:
            return
        with atomic_path(self.output_dir / "examples" / "example.npz") as partial:
            np.savez_compressed(partial, **self._kept)  # type: ignore[arg-type]


class SaveLatents:
    """Latent vectors of the test slices, pooled at the bottleneck: ``latents.npz``, float32 (slices, values).

    It acts in the final test of a federation only (``engine.state.split == "test"``), and not for reference methods;
    the last model tested is the one that stays. Guo et al. (CVPR 2021) and Feng et al. (TMI 2023) show such vectors of
    all sites in two dimensions. The file is for the site and for simulations: it never enters a message.

    Args:
        output_dir: folder of the site.
        layer: name of the module whose output (B, C, h, w) is pooled.
        compile: what the network's ``compile`` is set to, for the check only.

    Raises:
        ConfigError: when the network is compiled, and calls no hooks; in the test, when it has no such module.
    """

    def __init__(self, output_dir: OutputPath, layer: str = "encoder.bottleneck", compile: bool = False) -> None:
        if compile:
            raise ConfigError(
                "save_latents reads features inside of the network, which a compiled one does not show; set compile or "
                "save_latents to false."
            )
        self.path = Path(output_dir) / "latents.npz"
        self.layer = layer
        self._hook: Any = None
        self._vectors: list[np.ndarray] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.COMPLETED, self._write)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _begin(self, engine: Any) -> None:
        self._end()
        if getattr(engine.state, "split", None) != "test" or engine.state.reference is not None:
            return
        try:
            module = engine.network.get_submodule(self.layer)
        except AttributeError as error:
            parts = ", ".join(name for name, _ in engine.network.named_modules() if name.endswith("bottleneck"))
            raise ConfigError(
                f"latent_layer is '{self.layer}', which {type(engine.network).__name__} does not have; name the module "
                f"whose output save_latents keeps{f' ({parts})' if parts else ''}, or set save_latents to false."
            ) from error
        self._hook = module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._vectors.append(pooled_latent(output.detach().float()).cpu().numpy())

    def _end(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._vectors = None, []

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._end()
        raise error

    def _write(self, engine: Engine) -> None:
        if self._vectors:
            with atomic_path(self.path) as partial:
                np.savez_compressed(partial, latents=np.concatenate(self._vectors))
        self._end()
