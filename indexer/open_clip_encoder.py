"""OpenClipEncoder: every CLIP that open_clip can load."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Self, TypeVar

import numpy as np
from PIL.Image import Image

from indexer.encoder import DEMO, DEMO_FOLDER, Embeddings, EncoderName, EncoderSpec, Patches, Pixels, Precision
from indexer.errors import EncoderError
from indexer.images import RGB
from indexer.preprocessing import Preprocessing
from indexer.segments import segments
from indexer.torch_runtime import devices, open_clip, torch

T = TypeVar("T")

# Parameters of the image half; all others are the text half's. open_clip names them so in each of its model classes.
_IMAGE_PREFIX = "visual."

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Texts whose pieces are known. A tokenizer takes a quarter of a millisecond for a short one, and people ask again.
_KEPT_TEXTS = 10_000

# Inputs that are encoded at once. A CPU is fastest while what lies between two layers fits its cache: ViT-B-32 on two
# cores encodes 21 pictures per second in batches of 16, 19 in 64, 14 in 256 (measured). A GPU wants large ones.
_BATCH_SIZES = {"cpu": 16, "cuda": 256}


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

    def __init__(
        self, spec: EncoderSpec, model: Any, tokenizer: Any, device: str, precision: Precision = "fp32"
    ) -> None:
        """Encode with a model whose parameters have the type of `precision`."""
        self.spec = spec.model_copy(update={"precision": precision})
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self.preprocess = Preprocessing.of(asdict(_preprocess_cfg(model)))
        self.device = torch.device(device)
        self.model = model.to(device).eval()
        self._tokenizer = tokenizer
        self._segments = lru_cache(_KEPT_TEXTS)(_Segments(tokenizer))
        self._dtype = _DTYPES[precision]
        self._batch_size = _BATCH_SIZES.get(self.device.type, 16)
        self._mean = torch.tensor(self.preprocess.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(self.preprocess.std, device=device).view(3, 1, 1)
        # One call at a time. Each takes all the threads it may, and torch would give every thread that calls a team of
        # its own; one call with two threads encodes as much as two with one each, to within the noise (measured).
        self._lock = Lock()

    @classmethod
    def load(cls, name: EncoderName, *, device: str, threads: int, precision: Precision | None) -> Self:
        """Load a model as `indexer.encoder.load_encoder` says."""
        if threads:
            torch.set_num_threads(threads)
        device = devices()[0] if device == "auto" else device
        loaded = load_model(name)
        spec, model = loaded.spec(), loaded.model
        try:
            on_gpu = torch.device(device).type == "cuda"
            precision = precision or (_best_precision() if on_gpu else "fp32")
            if precision not in _DTYPES:
                raise EncoderError(f"torch encodes in {', '.join(_DTYPES)}; {precision} is ONNX Runtime's.")
            layout = torch.channels_last if on_gpu else torch.preserve_format
            model = model.to(device, _DTYPES[precision], memory_format=layout)
        except (RuntimeError, AssertionError) as error:  # torch's ways to say that there is no such device
            raise EncoderError(f"The device {device!r} cannot be used: {error}") from error
        return cls(spec, model, loaded.tokenizer, device, precision)

    def encode_images(self, pixels: Sequence[Pixels]) -> Embeddings:
        """Encode n preprocessed pictures into shape (n, dim)."""
        return self._encode(pixels, lambda batch: self.model.encode_image(self._normalised(batch)))

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Encode n texts into shape (n, dim)."""
        return self._encode(texts, lambda batch: self.model.encode_text(self.tokens(batch).to(self.device)))

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Return what the text tower reads, int64 of shape (n, context length), with zeros after the end mark."""
        tokens: torch.Tensor = self._tokenizer(list(texts))
        return tokens

    def patches(self, picture: Image | RGB) -> Patches | None:
        """Return what each patch of an upright RGB picture shows; None for other towers than open_clip's own ViT.

        What becomes of the class token, the last norm and the projection, is done to the last layer's patch tokens.
        """
        visual = self.model.visual
        if not isinstance(visual, open_clip.transformer.VisionTransformer) or visual.attn_pool is not None:
            return None
        pixels = self.preprocess(picture)
        with self._lock, torch.inference_mode():
            found = visual.forward_intermediates(
                self._normalised([pixels]), indices=1, normalize_intermediates=True, intermediates_only=True
            )
            tokens = found["image_intermediates"][0][0].permute(1, 2, 0) @ visual.proj
            vectors = torch.nn.functional.normalize(tokens.float(), dim=-1).cpu().numpy()
        left, top, right, bottom = self.preprocess.covers(*np.asarray(picture).shape[:2])
        # Pixels beyond the last whole patch, on the right and at the bottom, belong to none.
        (rows, columns), (height, width) = visual.grid_size, visual.patch_size
        right = left + (right - left) * columns * width / pixels.shape[2]
        bottom = top + (bottom - top) * rows * height / pixels.shape[1]
        return Patches(vectors, (left, top, right, bottom))

    def segments(self, text: str) -> list[str]:
        """Return a text in pieces that the text tower reads whole."""
        return list(self._segments(text))

    def _encode(self, inputs: Sequence[T], tower: Callable[[Sequence[T]], torch.Tensor]) -> Embeddings:
        if not inputs:
            return np.empty((0, self.spec.dim), np.float32)
        starts = range(0, len(inputs), self._batch_size)
        with self._lock, torch.inference_mode():
            # On a GPU each batch is only queued, and fetched at the end: the next is stacked while it is encoded.
            batches = [tower(inputs[start : start + self._batch_size]).float() for start in starts]
            embeddings: Embeddings = torch.nn.functional.normalize(torch.cat(batches), dim=-1).cpu().numpy()
            return embeddings

    def _normalised(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        """Return what the image tower takes, shape (n, 3, height, width). A GPU is sent bytes, a quarter of floats."""
        on_gpu = self.device.type == "cuda"
        stacked = torch.empty((len(pixels), *pixels[0].shape), dtype=torch.uint8, pin_memory=on_gpu)
        np.stack(pixels, out=stacked.numpy())
        batch = stacked.to(self.device, non_blocking=True).float().div_(255).sub_(self._mean).div_(self._std)
        return batch.to(self._dtype, memory_format=torch.channels_last if on_gpu else torch.preserve_format)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens that are not padding."""
        return int((self.tokens(texts) != 0).sum()) if texts else 0


class _Segments:
    """From a text to pieces that a context holds whole."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._length = int(tokenizer.context_length)
        empty = Counter(self._tokens("", 2 * self._length)) - Counter(self._tokens("", self._length))
        self._padding = list(empty.elements())

    def __call__(self, text: str) -> tuple[str, ...]:
        return tuple(segments(text, self._fits))

    def _fits(self, text: str) -> bool:
        """Tell whether a context holds all of a text.

        One of twice the length then holds nothing but padding in addition, whatever a tokenizer pads with, and
        wherever. Most do at the end, which can be told without reading the text a second time.
        """
        whole = self._tokens(text, 2 * self._length)
        if whole[self._length :] == self._padding:
            return True
        return Counter(whole) - Counter(self._tokens(text, self._length)) == Counter(self._padding)

    def _tokens(self, text: str, context_length: int) -> list[int]:
        tokens: list[int] = self._tokenizer([text], context_length=context_length)[0].tolist()
        return tokens


def _best_precision() -> Precision:
    """Return the half precision that the GPU computes fastest in."""
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


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
