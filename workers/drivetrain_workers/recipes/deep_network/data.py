"""Fashion-MNIST, as the recipe for image generation reads it."""

from drivetrain_workers.recipes.image_generation.data import clothes

__all__ = ["clothes"]
