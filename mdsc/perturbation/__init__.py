"""The Gaussian diffusion head: perturbed cells in a latent space, given unperturbed cells and the perturbed gene."""
