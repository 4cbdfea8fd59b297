"""The live tests, run on other kernels in emulated machines."""
