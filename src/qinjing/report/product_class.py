"""What a product of each class may put out, decided here and nowhere else.

A model is declared as one of three classes. The report and the service ask this file before they
make anything, so that a page cannot show what its class may not say.
"""

from __future__ import annotations

from collections.abc import Mapping

from qinjing.errors import ConfigError

# What may be put out, by class; each class may put out what the one before may.
_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "tool": ("annotation", "picture"),
    "analysis": ("annotation", "picture", "measurement", "change"),
    "diagnosis": ("annotation", "picture", "measurement", "change", "finding"),
}
CLASSES = tuple(_ALLOWED)
KINDS = _ALLOWED["diagnosis"]


def allowed(kind: str, product_class: str) -> bool:
    """Say whether a product of a class may put something out.

    Args:
        kind: one of `KINDS`: "annotation" (a segmentation), "picture" (images with its outline),
            "measurement" (volumes, diameters, grey values), "change" (between two dates),
            "finding" (a statement on disease, with its confidence).
        product_class: one of `CLASSES`.

    Raises:
        ConfigError: another kind or class.
    """
    if kind not in KINDS:
        raise ConfigError("kind of output", f"one of {', '.join(KINDS)}", kind)
    if product_class not in _ALLOWED:
        raise ConfigError("product class", f"one of {', '.join(CLASSES)}", product_class)
    return kind in _ALLOWED[product_class]


def require(kind: str, product_class: str) -> None:
    """Refuse what a class may not put out.

    Raises:
        ConfigError: `allowed` says no, or does not know the kind or the class.
    """
    if not allowed(kind, product_class):
        least = next(name for name in CLASSES if allowed(kind, name))
        raise ConfigError(
            "output", f"what a product of class {product_class} may put out", f"a {kind}",
            advice=f"that needs the class {least}, declared for the model",
        )  # fmt: skip


def must_be_confirmed(product_class: str) -> bool:
    """Say whether what a class says goes out only once a named reader has confirmed it.

    Raises:
        ConfigError: another class.
    """
    return allowed("finding", product_class)
