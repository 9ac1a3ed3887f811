"""Data sets: finding, reading and checking images and labels, and drawing crops from them."""
