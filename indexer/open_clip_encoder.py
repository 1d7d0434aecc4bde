"""OpenClipEncoder: every CLIP that open_clip can load."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL.Image import Image

from indexer.encoder import DEMO, DEMO_FOLDER, Embeddings, EncoderName, EncoderSpec, Pixels
from indexer.errors import EncoderError
from indexer.torch_runtime import open_clip, torch

# Parameters of the image half; all others are the text half's. open_clip names them so in each of its model classes.
_IMAGE_PREFIX = "visual."

# A transform that resizes the shorter side would blow a picture of 1 x 65,535 pixels up to gigabytes before it cuts
# the centre out. Cutting to this aspect first leaves that centre as it was.
_MAX_ASPECT = 16


@dataclass(frozen=True)
class LoadedModel:
    """An open_clip model as its name says: on the CPU, in single precision; `config` says how to make another."""

    name: EncoderName
    model: Any
    tokenizer: Any
    config: dict[str, Any]

    @property
    def preprocess(self) -> dict[str, Any]:
        """What is done to a picture, in the words of open_clip's `preprocess_cfg`."""
        return asdict(_preprocess_cfg(self.model))

    def spec(self) -> EncoderSpec:
        """Return the identity of the model as its weights are now."""
        return _spec(self.name, self.config, self.model, self.tokenizer)


def load_model(name: EncoderName) -> LoadedModel:
    """Load a model for training.

    Raises:
        EncoderError: there is no such model, or its weights do not fit it.
    """
    source = _source(name.model)
    checkpoint = name.pretrained if name.pretrained and Path(name.pretrained).is_file() else None
    try:
        if checkpoint is None:
            model = open_clip.create_model(source, name.pretrained, require_pretrained=True)
        else:
            # Loaded by us: open_clip would bend a checkpoint of another architecture until it fits.
            model = open_clip.create_model(source, pretrained_text=False)
            _load_checkpoint(model, checkpoint, name)
        return LoadedModel(name, model, open_clip.get_tokenizer(source), open_clip.get_model_config(source))
    except EncoderError:
        raise
    except Exception as error:
        # open_clip and the hub client raise what their many loaders raise; each means that the name is of no use.
        raise EncoderError(f"The model {name} cannot be loaded: {error}") from error


class OpenClipEncoder:
    """A dual encoder of open_clip: its model, its own preprocessing, its tokenizer."""

    def __init__(self, spec: EncoderSpec, model: Any, tokenizer: Any, device: str) -> None:
        self.spec = spec
        self.logit_scale = float(model.logit_scale.detach().exp())
        self._model = model.to(device).eval()
        self._transform = open_clip.transform.image_transform_v2(_preprocess_cfg(model), is_train=False)
        self._tokenizer = tokenizer
        self._device = device

    @classmethod
    def load(cls, name: EncoderName, *, device: Literal["auto", "cpu", "cuda"], threads: int) -> Self:
        """Load a model as `indexer.encoder.load_encoder` says."""
        if threads:
            torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_model(name)
        return cls(loaded.spec(), loaded.model, loaded.tokenizer, device)

    def preprocess(self, image: Image) -> Pixels:
        """Apply the model's own evaluation transform to an RGB picture."""
        pixels: Pixels = self._transform(limit_aspect(image)).numpy()
        return pixels

    def encode_images(self, pixels: Sequence[Pixels]) -> Embeddings:
        """Encode n preprocessed pictures into shape (n, dim)."""
        if not pixels:
            return np.empty((0, self.spec.dim), np.float32)
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(pixels)).to(self._device)
            embeddings: Embeddings = self._model.encode_image(batch, normalize=True).float().cpu().numpy()
            return embeddings

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Encode n texts into shape (n, dim)."""
        if not texts:
            return np.empty((0, self.spec.dim), np.float32)
        with torch.inference_mode():
            tokens = self._tokenizer(list(texts)).to(self._device)
            embeddings: Embeddings = self._model.encode_text(tokens, normalize=True).float().cpu().numpy()
            return embeddings

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens that are not padding."""
        return int((self._tokenizer(list(texts)) != 0).sum()) if texts else 0


def _source(model: str) -> str:
    """Return open_clip's way to say `model`."""
    if model == DEMO:
        return f"local-dir:{DEMO_FOLDER}"
    return model if ":" in model else model.replace("/", "-")


def _load_checkpoint(model: Any, path: str, name: EncoderName) -> None:
    """Load a plain state dict, which must have exactly the parameters of `model`."""
    state = open_clip.factory.load_state_dict(path, weights_only=True)
    want = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    # A scalar may have been saved with shape () or (1,).
    state = {key: value.reshape(want.get(key, ())) if value.numel() == 1 else value for key, value in state.items()}
    have = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in want.keys() | have.keys() if want.get(key) != have.get(key))
    if wrong:
        key = wrong[0]
        raise EncoderError(
            f"The checkpoint {path} does not belong to the architecture {name.model}: {len(wrong)} of {len(want)} "
            f"parameters differ, for example {key}: {have.get(key, 'none')} in the checkpoint, "
            f"{want.get(key, 'none')} in {name.model}. Name the architecture it was trained with."
        )
    model.load_state_dict(state)


def _preprocess_cfg(model: Any) -> Any:
    return open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)


def _spec(name: EncoderName, config: dict[str, Any], model: Any, tokenizer: Any) -> EncoderSpec:
    dim = int(config["embed_dim"])
    architecture = {key: value for key, value in config.items() if key not in {"vision_cfg", "text_cfg"}}
    image_facts = [architecture, config["vision_cfg"], asdict(_preprocess_cfg(model)), dim, "unit length"]
    # What a tokenizer makes of a mixed text tells its vocabulary and its rules apart from another's.
    probe = tokenizer(["A fingerprint: 1,234 ünïcödé wörds, 図形!"]).tolist()
    text_facts = [architecture, config["text_cfg"], type(tokenizer).__name__, tokenizer.context_length, probe]
    state = model.state_dict()
    image = {key: value for key, value in state.items() if key.startswith(_IMAGE_PREFIX)}
    text = {key: value for key, value in state.items() if not key.startswith(_IMAGE_PREFIX)}
    return EncoderSpec(name=name, dim=dim, image=_digest(image_facts, image), text=_digest(text_facts, text))


def _digest(facts: list[Any], parameters: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key in sorted(parameters):
        value = parameters[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def limit_aspect(image: Image) -> Image:
    """Cut the centre out of a picture that is more than `_MAX_ASPECT` times as long as it is wide."""
    width, height = image.size
    side = min(width, height) * _MAX_ASPECT
    if max(width, height) <= side:
        return image
    left, top = max(0, (width - side) // 2), max(0, (height - side) // 2)
    return image.crop((left, top, left + min(width, side), top + min(height, side)))
