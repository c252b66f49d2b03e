"""Where networks come from, other than this package and torchvision: one module a source."""
