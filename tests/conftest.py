"""Shapes and dtypes in the signatures of the losses are enforced while the tests run: jaxtyping with beartype."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

from jaxtyping import install_import_hook

from tests import shape_check

install_import_hook(["kdsearch.distillation.losses", "kdsearch.distillation.matching"], f"{shape_check.__name__}.check")
