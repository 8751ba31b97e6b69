"""The perceptual network: features of any timm model, their distance, MoCo v3 to train one."""
