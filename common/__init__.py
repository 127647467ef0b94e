"""What router and node must agree on. Imports neither of them, nor torch, nor diffusers."""
