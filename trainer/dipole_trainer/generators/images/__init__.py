"""From latents to images and back: a pipeline's VAE, and candidates on the way off the device."""
