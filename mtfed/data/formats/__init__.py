"""The image formats that hospitals have, read into arrays."""
