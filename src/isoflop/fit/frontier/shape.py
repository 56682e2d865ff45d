"""Whether a transformer's shape lies outside what Kaplan et al. 2020 tried and found to matter little."""

from __future__ import annotations

ASPECT_RATIO = (768 / 207, 4288 / 6)
"""d_model/n_layer: the shapes (n_layer, d_model) = (207, 768) and (6, 4288) between which section 3.2 names its largest
models; (6, 4288) is within 3% of the loss of (48, 1600), and a factor of 40 has a slight effect (caption of figure 5).
Doubt: the text states no range. The figure marks a narrower one, about 10 to 300, as "similar performance"."""

FEED_FORWARD_RATIO = (0.5, 10.0)
"""d_ff/d_model. Doubt: read off figure 5 (50M parameters) at second hand: below 2% more loss from 0.5 to 8, about 5% at
20, 8% at 40; the text states no range. Their feed-forward layers have no gate."""

HEAD_DIMENSION = (16.0, 256.0)
"""d_model/n_head. Doubt: the ends of figure 5's runs (25M parameters, less than 2% more loss), read at second hand."""

LAYERS = 2
"""Fewer deviate from the common trend: caption of figure 6."""


def shape_warning(layers: int, width: int, heads: int, feed_forward: int | None = None) -> tuple[str, ...]:
    """Why a shape's loss may differ from that of others of its non-embedding size; empty where it should not.

    Inside these ranges the loss varies by a few percent at most; 1% is worth 22% of compute (Kaplan et al. 2020,
    section 3.1 and figure 5). Outside nothing is known from that paper: a warning, no verdict.

    Args:
        layers: n_layer, transformer blocks.
        width: d_model, of the residual stream.
        heads: n_head, query heads of an attention layer.
        feed_forward: d_ff, inner width of the feed-forward layer; None: not looked at.

    Raises:
        ValueError: a number that is not positive.

    >>> shape_warning(48, 1600, 25, 6400)
    ()
    >>> shape_warning(1, 512, 8)
    ('1 layer: fewer than 2 deviate from the trend of deeper models (Kaplan et al. 2020, figure 6)',)
    """
    for name, value in (("layers", layers), ("width", width), ("heads", heads), ("feed_forward", feed_forward)):
        if value is not None and not value >= 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}: pass the model's own number")
    ratios = [
        ("aspect ratio d_model/n_layer", width / layers, ASPECT_RATIO),
        ("attention head dimension d_model/n_head", width / heads, HEAD_DIMENSION),
    ]
    if feed_forward is not None:
        ratios.append(("feed-forward ratio d_ff/d_model", feed_forward / width, FEED_FORWARD_RATIO))
    reasons = [
        f"{name} = {value:.3g}: Kaplan et al. 2020 found the shape to matter little from {low:.3g} to {high:.3g}"
        for name, value, (low, high) in ratios
        if not low <= value <= high
    ]
    if layers < LAYERS:
        reasons.append(
            f"{layers} layer: fewer than {LAYERS} deviate from the trend of deeper models "
            f"(Kaplan et al. 2020, figure 6)"
        )
    return tuple(reasons)
