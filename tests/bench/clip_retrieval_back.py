"""Runs clip-retrieval's back end, in a Python of its own that has it.

`python clip_retrieval_back.py '{"port": ...}' [FOLDER]`: the arguments of its command `back`. `clip_model` may be an
architecture that its open_clip does not know: the name of FOLDER, which describes it in `open_clip_config.json`. Its
loader cannot be told how the pictures of such a model are prepared, and leaves a ResNet in training mode, where batch
norms go by the batch; both are mended here, and all else is its own.
"""

import json
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

# Its torchvision cannot be imported beside a CPU torch either; by path, since kindred is not installed there and its
# package would change OpenMP's settings. Referenced for good: torch forgets operators of what is collected.
_RUNTIME = runpy.run_path(str(Path(__file__).parents[2] / "indexer" / "torch_runtime.py"))

from clip_retrieval.clip_back import clip_back  # type: ignore[import-not-found]  # noqa: E402


def _register(model: Path) -> None:
    """Have open_clip know an architecture, and prepare pictures as it wants them."""
    open_clip: Any = _RUNTIME["open_clip"]
    config = json.loads((model / "open_clip_config.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as home:
        architecture = Path(home, f"{model.name}.json")
        architecture.write_text(json.dumps(config["model_cfg"]), encoding="utf-8")
        open_clip.add_model_config(architecture)  # reads it now
    facts = config["preprocess_cfg"]
    prepared = {f"image_{key}": facts[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    create = open_clip.create_model_and_transforms

    def created(*names: Any, **options: Any) -> Any:
        model, *transforms = create(*names, **options, **prepared)
        return model.eval(), *transforms

    open_clip.create_model_and_transforms = created


if __name__ == "__main__":
    for folder in sys.argv[2:]:
        _register(Path(folder))
    clip_back(**json.loads(sys.argv[1]))
