"""The door to torch: imports torch and open_clip so that they work side by side.

PyPI's torchvision for Linux is a CUDA build. Beside a CPU build of torch its C++ operators cannot be registered, and
`import torchvision` (hence `import open_clip`) fails with "operator torchvision::nms does not exist"
(https://github.com/pytorch/vision/issues/9085). kindred uses none of those operators, so on exactly that error they are
declared, without an implementation, and the import is tried again. Sound installs never reach that line.
"""

import re
import sys

import torch

# Referenced for the life of the process: torch forgets the operators of a Library that is collected.
_declared: list[torch.library.Library] = []


def _import_torchvision() -> None:
    missing = ""
    while True:
        try:
            import torchvision  # noqa: F401, PLC0415 - the import under test
        except RuntimeError as error:
            found = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if found is None or found[1] == missing:
                raise
            missing = found[1]
            library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            library.define(  # type: ignore[no-untyped-call]
                f"{missing}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
            _declared.append(library)
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
        else:
            return


_import_torchvision()

import open_clip  # noqa: E402 - imports torchvision, so it comes after
from torchvision.transforms import v2 as transforms  # noqa: E402

__all__ = ["devices", "gpu_memory", "open_clip", "torch", "transforms"]


def devices() -> list[str]:
    """Return every device that an encoder may run on beside the others: each GPU, or else the CPU."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def gpu_memory() -> list[tuple[int, int]]:
    """Return the free bytes and all bytes of each GPU; none where CUDA is not in use."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    return [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
