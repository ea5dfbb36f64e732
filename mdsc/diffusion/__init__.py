"""The mathematics of absorbing-state diffusion: corruption, losses, schedules. No network in here."""
