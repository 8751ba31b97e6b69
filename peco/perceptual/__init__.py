"""The perceptual network: features of any timm model, the distance in them, MoCo v3 to train a network."""
