"""Hand-tuned Triton kernel templates, imported as ``gncompile.triton_kernels``.

The templates come with the GPU backend. Importing this package needs neither Triton nor a GPU; importing
a template without Triton raises an error that says what to install.
"""
