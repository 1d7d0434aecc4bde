"""Writes the card of an exported model: what it is, how it was made, what it was measured to do."""

from pathlib import Path

from indexer import demo
from indexer.finetune.evaluate import Figures
from indexer.finetune.train import TrainConfig, Trained

_CARD = """\
---
license: apache-2.0
library_name: open_clip
pipeline_tag: zero-shot-image-classification
---

# kindred demo model

A very small CLIP model, for trying out kindred without a download and for its tests. It knows the drawn things of
kindred's demo collection and **nothing of the real world**: {kinds} kinds ({names}) in {colours} colours
({colour_names}), how many there are, and what is behind them. Words that it was not trained on say nothing to it. For
photographs, take a model that was trained on photographs.

## Training

    python -m indexer train --out DIR --seed {seed} --pictures {pictures} --epochs {epochs}

{pictures:,} pictures drawn by `indexer/demo.py`, of {pairs} pairs of kind and colour. They are the fold "train"; the
demo collection is the fold "test", and no instance is in both. Each picture was seen {epochs} times, as a random crop
of at least {area:.0%} of it, with one of its captions.

The loss is InfoNCE between the pictures and the captions of a batch (CLIP's)
{views}.
AdamW, learning rate {learning_rate:g} falling as a cosine, batches of {batch}. Pictures of one colour stand together in
{by_colour:.0%} of the turns through all pairs, so that only the kind tells them apart, and those of one kind in
{by_kind:.0%}.

| | |
|---|---|
| parameters | {parameters:,} |
| weights | {megabytes:.1f} MB, half precision |
| steps | {steps:,} |
| loss, mean of the first tenth of the steps | {first_loss:.2f} |
| loss, mean of the last tenth of the steps | {loss:.2f} |
| CPU time, one thread | {cpu_seconds:,.0f} s |
| seed | {seed} |

## Figures

Measured on these very weights by `indexer/finetune/evaluate.py`, on the default demo collection (2,000 pictures of 200
instances, seed 0):

| | |
|---|---|
| precision at 10 of 50 queries such as "a red star", mean | {precision:.3f} |
| precision at 10, worst query | {worst_precision:.1f} |
| k-NN accuracy of the kind (k = 21, leave one out) | {accuracy:.3f} |
| picture to pictures of the same instance, mean average precision | {instance_map:.3f} |
| picture to a picture of the same instance first | {instance_recall:.3f} |
{crops}
Captions do not tell look-alikes apart, so the two figures about instances are a starting point, not an aim.

## Licence

Apache-2.0, as kindred. The training pictures are drawn by kindred itself.
"""

_CROPS = """\
| crops of 80 % of a photograph that find it first among {photos:,}: centred | {centred} of {asked} |
| the same, cut anywhere | {anywhere} of {asked} |
"""


def write_card(out: Path, trained: Trained, figures: Figures) -> None:
    """Write README.md beside the weights in `out`."""
    config = trained.config
    text = _CARD.format(
        kinds=len(demo.KINDS),
        names=", ".join(demo.KINDS),
        colours=len(demo.COLOURS),
        colour_names=", ".join(demo.COLOURS),
        pairs=len(demo.pairs(config.pictures, config.seed)),
        views=_views(config),
        megabytes=(out / "open_clip_model.safetensors").stat().st_size / 1e6,
        crops="" if figures.crops is None else _CROPS.format(**vars(figures.crops)),
        **vars(config),
        **{name: value for name, value in vars(trained).items() if name != "config"},
        **{name: value for name, value in vars(figures).items() if name != "crops"},
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _views(config: TrainConfig) -> str:
    if not config.seen_twice:
        return "alone"
    twice = f"InfoNCE between two crops of {config.seen_twice} of the pictures (SimCLR's)"
    return f"plus {config.views_weight:g} times {twice}"
