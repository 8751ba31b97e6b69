"""Networks that exist already: a timm model by its name or from a file of weights, and the range of a model's images."""
