"""A data-first training stack for image classification on FFCV."""
