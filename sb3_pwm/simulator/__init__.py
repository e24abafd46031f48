"""Gymnasium's MuJoCo environments as differentiable dynamics."""
