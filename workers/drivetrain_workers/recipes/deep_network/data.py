"""The reader of Fashion-MNIST from the recipe for image generation."""

from drivetrain_workers.recipes.image_generation.data import clothes

__all__ = ["clothes"]
