"""A model compiled to a file of its own: C object, archive, shared library or WebAssembly module, with bindings."""
