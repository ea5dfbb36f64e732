"""Array shapes and types are checked while testing: every jaxtyping annotation in mdsc is a runtime check here."""

from jaxtyping import install_import_hook

install_import_hook("mdsc", "beartype.beartype")
