"""Texts that stand for a class: prompts made from its name, or descriptions of what it looks like."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from indexer.encoder import Embeddings, Encoder
from indexer.errors import BuildError

NAME = "{}"

TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""OpenAI's subset of seven for ImageNet (notebook Prompt_Engineering_for_ImageNet of openai/CLIP)."""

_BATCH = 256
_DESCRIPTIONS = TypeAdapter(dict[str, tuple[str, ...]])


def read_templates(path: Path) -> tuple[str, ...]:
    """Return the prompt templates of a text file, one per line, with `{}` for the name of the class.

    Raises:
        BuildError: the file cannot be read, holds no template, or a line has no `{}`.
    """
    templates = tuple(line.strip() for line in _read(path).splitlines() if line.strip())
    if not templates:
        raise BuildError(f"The templates {path} hold no line; one such as 'a photo of a {NAME}.' is needed.")
    for template in templates:
        if NAME not in template:
            raise BuildError(f"The template {template!r} in {path} does not say where the name goes; write {NAME}.")
    return templates


def read_descriptions(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the descriptions of a JSON file: an object of lists of texts, by class.

    Raises:
        BuildError: the file cannot be read or holds something else.
    """
    try:
        return _DESCRIPTIONS.validate_json(_read(path))
    except ValidationError as error:
        fault = error.errors()[0]
        place = "/".join(str(part) for part in fault["loc"]) or "the whole"
        raise BuildError(
            f'The descriptions {path} must be JSON such as {{"cat": ["whiskers", "a long tail"]}}; '
            f"at {place}: {fault['msg']}."
        ) from error


def described(name: str, description: str) -> str:
    """Join a class and a description as Menon and Vondrick (ICLR 2023) do: "cat, which has whiskers".

    Whole words decide: "antlers" does not begin with the article "a".
    """
    first = description.split(maxsplit=1)[0].lower() if description.strip() else ""
    if first in {"a", "an", "used"}:
        return f"{name}, which is {description}"
    if first in {"has", "is", "often", "typically", "may", "can"}:
        return f"{name}, which {description}"
    return f"{name}, which has {description}"


def class_vectors(encoder: Encoder, classes: Sequence[str], templates: Sequence[str]) -> Embeddings:
    """Return the normalised mean of the embeddings of each class's prompts, shape (classes, dim).

    The zero-shot classifier of Radford et al. (CLIP, ICML 2021). Underscores in names are read as spaces.
    """
    prompts = [[template.replace(NAME, _spoken(name)) for template in templates] for name in classes]
    means = _mean_embeddings(encoder, prompts)
    vectors: Embeddings = means / np.linalg.norm(means, axis=1, keepdims=True)
    return vectors


def description_vectors(
    encoder: Encoder, classes: Sequence[str], descriptions: Mapping[str, Sequence[str]]
) -> NDArray[np.float32]:
    """Return the mean of the embeddings of each class's descriptions, shape (classes, dim), not normalised.

    An inner product with it is the mean of the similarities to the descriptions, the score of Menon and Vondrick
    (ICLR 2023). A class with an empty list is described by its name alone.

    Raises:
        BuildError: a class has no entry.
    """
    missing = [name for name in classes if name not in descriptions]
    if missing:
        raise BuildError(
            f"{len(missing)} of {len(classes)} classes have no descriptions, for example {missing[0]!r}. "
            "Give each class a list; an empty one stands for the name alone."
        )
    texts = [[described(_spoken(name), each) for each in descriptions[name]] or [_spoken(name)] for name in classes]
    return _mean_embeddings(encoder, texts)


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Embeddings:
    """Encode any number of texts, a batch at a time."""
    batches = [encoder.encode_texts(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
    return np.concatenate(batches) if batches else encoder.encode_texts([])


def _mean_embeddings(encoder: Encoder, prompts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    embeddings = encode_texts(encoder, [prompt for each in prompts for prompt in each])
    ends = np.cumsum([len(each) for each in prompts])
    return np.stack([part.mean(axis=0) for part in np.split(embeddings, ends[:-1])])


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BuildError(f"{path} is not UTF-8: {error}.") from error
